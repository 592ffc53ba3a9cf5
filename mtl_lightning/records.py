"""What is logged of a step, an epoch and an evaluation, by name."""

from collections.abc import Mapping, MutableMapping

from torch import Tensor

from mtl_lightning.gradients import GradientEngine
from mtl_lightning.metrics.evaluation import TaskResult, score
from mtl_lightning.training import Step
from mtl_lightning.weighting import Weighting


def step_record(
    step: Step,
    importance: Mapping[str, float],
    latest: MutableMapping[str, float],
    weighting: Weighting,
    engine: GradientEngine | None,
) -> dict[str, float]:
    """A step's losses without importance, weights with it, penalties, and what was last seen of the gradients.

    Args:
        step: what was taken.
        importance: each task's fixed weight.
        latest: the last loss of each task, which is shown where it is absent; is brought up to date.
        weighting: may have notes.
        engine: has seen gradients; None without.
    """
    values, names, shown = step.losses.numbers, list(importance), dict.fromkeys(importance, 0.0)
    for position in step.losses.places:
        latest[names[position]] = values[position] / importance[names[position]]
    for position, weight in step.weights.items():
        shown[names[position]] = weight * importance[names[position]]
    record = {f"step/{name}/loss": latest[name] for name in names if name in latest}
    record |= {f"weight/{name}": weight for name, weight in shown.items()}
    record |= {f"penalty/{name}": float(value.detach()) for name, value in step.penalties.items()}
    record |= weighting.notes()
    return record if engine is None else record | engine.balance.record()


def epoch_record(
    importance: Mapping[str, float], losses: Tensor, weighted: Tensor, rows: Tensor, engine: GradientEngine | None
) -> dict[str, float]:
    """An epoch's mean losses, labelled rows, and means over the gradients seen.

    Args:
        importance: by task.
        losses: [T].
        weighted: [T], times importance.
        rows: [T].
        engine: has seen gradients; None without.
    """
    seen = rows > 0
    record = {f"train/{name}/loss": float(losses[task]) for task, name in enumerate(importance) if seen[task]}
    record |= {f"train/{name}/rows": float(rows[task]) for task, name in enumerate(importance)}
    record |= {} if engine is None else engine.balance.meter.epoch_record()
    return record | {"train/loss": float(weighted[seen].sum())}


def split_record(split: str, results: Mapping[str, TaskResult], importance: Mapping[str, float]) -> dict[str, float]:
    """An evaluation's metrics, labelled elements, and over the main tasks the loss and the score."""
    record: dict[str, float] = {}
    for name, result in results.items():
        record |= {f"{split}/{name}/{key}": value for key, value in result.values.items()}
        record[f"{split}/{name}/count"] = float(result.count)
    main = {name: result for name, result in results.items() if not result.auxiliary}
    if (value := score(results)) is not None:
        losses = [importance[name] * result.values["loss"] for name, result in main.items()]
        record |= {f"{split}/loss": sum(losses), f"{split}/score": value}
    return record
