"""Which logged values can be followed by checkpoints and schedules, and what can be chosen on the validation split."""

from typing import Literal

import lightning.pytorch as pl
from torch import nn

from mtl_lightning.errors import CheckpointError, ConfigError


def check_monitor(key: str, monitor: str, module: pl.LightningModule, counts: dict[str, tuple[int, int]]) -> None:
    """Raise :class:`ConfigError` if a value cannot be monitored.

    Args:
        key: the configuration key, for the message.
        monitor: the value's name.
        module: with its tasks.
        counts: labelled and all rows of the validation split, by task.
    """
    tasks = dict(module.tasks.items())  # type: ignore[union-attr, operator]
    parts = monitor.split("/")
    name = parts[1] if len(parts) == 3 else ""
    if name in tasks and parts[0] == "val" and not counts.get(name, (0, 0))[0]:
        raise ConfigError(f"{key} is {monitor}, but task '{name}' has no validation label; monitor val/score or another task")
    known = {"val/score", "val/loss", "train/loss"}
    for task in tasks.values():
        known |= {f"val/{task.name}/{metric}" for metric in task.keys()} | {f"train/{task.name}/loss"}  # noqa: SIM118 - no dict
    if parts[0] == "val" and monitor in known:
        if not module.trainer.limit_val_batches:
            raise ConfigError(f"{key} is {monitor}, but trainer.limit_val_batches is 0: nothing is validated")
        main = [name for name, task in tasks.items() if not task.auxiliary]
        if len(parts) == 2 and not any(counts.get(name, (0, 0))[0] for name in main):
            raise ConfigError(f"{key} is {monitor}, but no main task has a validation label; monitor train/loss, or leave it out")
    if monitor not in known:
        raise ConfigError(f"{key} is {monitor}, which is never logged; there are: {', '.join(sorted(known))}")


def direction(key: str, monitor: str, given: Literal["min", "max"] | None, module: pl.LightningModule) -> Literal["min", "max"]:
    """Whether a value is to be small or large.

    Args:
        key: the configuration key of the given direction, for the message.
        monitor: the value's name, known.
        given: the configured direction.
        module: with its tasks.

    Raises:
        ConfigError: the given direction would pick the worst.
    """
    tasks = dict(module.tasks.items())  # type: ignore[union-attr, operator]
    parts = monitor.split("/")
    higher = parts[-1] == "score"
    if len(parts) == 3 and parts[-1] != "loss":
        measure = tasks[parts[1]].measures.get(parts[-1])
        if measure is None:
            return given or "max"
        if measure.higher_is_better is None:
            raise ConfigError(f"{monitor} is best at {measure.best:g}, neither small nor large; monitor another value")
        higher = measure.higher_is_better
    right: Literal["min", "max"] = "max" if higher else "min"
    if given not in (None, right):
        raise ConfigError(f"{key} is {given}, but of {monitor} the {right} is the best; leave it out, or set it to {right}")
    return right


def check_tunable(tasks: nn.ModuleDict, counts: dict[str, tuple[int, int]]) -> None:
    """Raise :class:`ConfigError` if a task is to choose its thresholds on a validation split that has no label of it.

    Args:
        tasks: by name.
        counts: labelled and all rows of the validation split, by task; empty where nothing is validated.
    """
    for name, task in tasks.items():
        if task.untuned and not counts.get(name, (0, 0))[0]:
            raise ConfigError(
                f"model.tasks.{name}.init_args.threshold is validation, but no label of it is validated "
                "(no validation row has one, or trainer.limit_val_batches is 0); set it to a number, or validate some"
            )


def check_tuned(tasks: nn.ModuleDict) -> None:
    """Raise :class:`CheckpointError` if a task's thresholds have not been chosen."""
    for name, task in tasks.items():
        if task.untuned:
            raise CheckpointError(
                f"model.tasks.{name}.init_args.threshold is validation, but the checkpoint has none that was chosen there; "
                "use a checkpoint of a run that was trained and validated with it, or set it to a number"
            )
