"""Means over labelled elements, skill and score, by hand."""

import math

import pytest
import torch

from mtl_lightning.batch import Collate
from mtl_lightning.metrics.evaluation import Evaluation, LossMeter, score, skill, stack_terms
from mtl_lightning.tasks import Classification, Regression
from mtl_lightning.tasks.base import Measure, Task, Term

UP, DOWN = Measure(True, 1.0), Measure(False, 0.0)


@pytest.mark.parametrize(
    ("measure", "value", "trivial", "expected"),
    [
        (UP, 0.75, 0.5, 0.5),
        (UP, 0.3, 0.5, 0.0),
        (UP, 1.0, 0.5, 1.0),
        (UP, 1.0, 1.0, 0.0),
        (DOWN, 1.0, 4.0, 0.75),
        (DOWN, 5.0, 4.0, 0.0),
        (DOWN, float("nan"), 4.0, 0.0),
    ],
)
def test_skill(measure: Measure, value: float, trivial: float, expected: float) -> None:
    assert skill(measure, value, trivial) == pytest.approx(expected)


LABELS: dict[str, list[float | None]] = {"kind": [0, None, 1, 1, 0], "length": [None, 4.0, None, None, 1.0]}
RAW = {
    "kind": [[2.0, 0.0], [9.0, 0.0], [3.0, 0.0], [0.0, 1.0], [1.0, 0.0]],
    "length": [[50.0], [0.0], [50.0], [50.0], [0.5]],
}


def tasks_of(auxiliary: bool = False) -> dict[str, Task]:
    tasks: dict[str, Task] = {
        "kind": Classification(classes=["a", "b"]),
        "length": Regression(names=["cm"], mean=2.0, std=1.0, auxiliary=auxiliary),
    }
    for name, task in tasks.items():
        task.name = name
    tasks["kind"].learn([torch.tensor(label) for label in (0, 0, 1)])
    tasks["length"].learn([torch.tensor([value]) for value in (1.0, 2.0, 6.0)])
    return tasks


def fill(evaluation: Evaluation, tasks: dict[str, Task], parts: list[list[int]]) -> None:
    collate = Collate({name: task.target for name, task in tasks.items()})
    for part in parts:
        samples: list[dict[str, object]] = []
        for row in part:
            known = {name: values[row] for name, values in LABELS.items() if values[row] is not None}
            targets = {name: torch.tensor(int(value) if name == "kind" else [value]) for name, value in known.items()}
            samples.append({"id": str(row), "image": torch.zeros(3, 2, 2)} | targets)
        batch = collate(samples)
        predictions = {name: torch.tensor([RAW[name][row] for row in part]) for name in tasks}
        losses = {name: task.loss(predictions[name], batch.targets[name], batch.labelled[name]) for name, task in tasks.items()}
        evaluation.update(predictions, losses, batch)


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4]], [[0], [1, 2], [3, 4]], [[4, 3, 2, 1, 0]]])
def test_means_over_labelled_elements_however_they_are_batched(parts: list[list[int]]) -> None:
    tasks = tasks_of()
    evaluation = Evaluation(tasks)
    fill(evaluation, tasks, parts)
    results = evaluation.compute()
    kind, length = results["kind"], results["length"]
    # Labels a b b a, predictions a a b a: three of four right; always a: two of four.
    assert (kind.count, kind.rows) == (4, 4)
    assert kind.values["accuracy"] == pytest.approx(0.75)
    assert kind.trivial["accuracy"] == pytest.approx(0.5)
    assert kind.skill == pytest.approx(0.5)
    entropy = [math.log(1 + math.exp(x)) for x in (-2.0, 3.0, -1.0, -1.0)]
    assert kind.values["loss"] == pytest.approx(sum(entropy) / 4, rel=1e-5)
    # In real units the predictions are 2 and 2.5 for 4 and 1; the trivial one is the training mean 3.
    assert (length.count, length.rows) == (2, 2)
    assert length.values["rmse"] == pytest.approx(math.sqrt((2**2 + 1.5**2) / 2))
    assert length.values["loss"] == pytest.approx((2**2 + 1.5**2) / 2)
    assert length.trivial["rmse"] == pytest.approx(math.sqrt((1 + 4) / 2))
    assert length.skill == 0.0
    assert score(results) == pytest.approx(0.25)


def test_auxiliary_and_unlabelled_tasks_are_not_in_the_score() -> None:
    tasks = tasks_of(auxiliary=True)
    evaluation = Evaluation(tasks)
    fill(evaluation, tasks, [[0, 4]])
    results = evaluation.compute()
    assert score(results) == results["kind"].skill == pytest.approx(0.0)  # the trivial guess is perfect here already
    evaluation.reset()
    fill(evaluation, tasks, [[1]])
    results = evaluation.compute()
    assert list(results) == ["length"]
    assert score(results) is None


def test_the_meter_sums_totals_and_denominators_apart() -> None:
    class Two(Regression):
        terms = ("near", "far")

    meter = LossMeter({"task": Two()})
    for near, far in (((6.0, 3.0), (1.0, 1.0)), ((2.0, 1.0), (0.0, 0.0))):
        terms = {
            "near": Term(torch.tensor(near[0]), torch.tensor(near[1])),
            "far": Term(torch.tensor(far[0]), torch.tensor(far[1]), 10.0),
        }
        meter.update(stack_terms({"task": terms}), torch.tensor([2]))
    losses, rows = meter.compute()
    assert losses.tolist() == [8 / 4 + 10 * 1 / 1]
    assert rows.tolist() == [4]
