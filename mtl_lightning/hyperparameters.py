"""Values of optimizer and schedule that were changed for a resumed run: loading the old state alone would undo them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mtl_lightning.errors import CheckpointError

PROGRESS = {"last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter"}
"""What a schedule's state says of how far it got, not of how it was configured."""


def snapshot(optimizer: Optimizer, scheduler: Any | None) -> dict[str, Any]:
    """The configured values of a new optimizer and a new schedule, as plain numbers and strings."""
    return {
        "optimizer": _path(optimizer),
        "scheduler": None if scheduler is None else _path(scheduler),
        "groups": [_plain(group) for group in optimizer.param_groups],
        "schedule": {} if scheduler is None else _plain(scheduler.state_dict()),
    }


def check_classes(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise :class:`CheckpointError` where a checkpoint's optimizer or schedule is of another class."""
    for part in ("optimizer", "scheduler"):
        if old[part] != new[part]:
            raise CheckpointError(
                f"model.{part} is {new[part]}, but the checkpoint holds the state of {old[part]}; "
                "use the one that it was trained with, or start a new run"
            )


def apply_changes(
    old: dict[str, Any],
    new: dict[str, Any],
    optimizer: Optimizer,
    scheduler: Any | None,
    twin: Callable[[], tuple[Optimizer, Any]],
) -> None:
    """Set what is configured otherwise than when the checkpoint was made; its progress stays.

    A changed schedule goes on where it would be had it run with the new values from the start. Where that depends on what was
    measured (ReduceLROnPlateau), the learning rate that it had come down to is moved by the ratio of the configured ones.

    Args:
        old: the checkpoint's :func:`snapshot`.
        new: the present one.
        optimizer: with the checkpoint's state.
        scheduler: likewise.
        twin: makes a new optimizer over other parameters, and its schedule, as configured now.
    """
    if old["groups"] == new["groups"] and old["schedule"] == new["schedule"]:
        return
    follows = isinstance(scheduler, ReduceLROnPlateau)
    for group, before, after in zip(optimizer.param_groups, old["groups"], new["groups"], strict=False):
        for key, value in after.items():
            if before.get(key) != value:
                _set(group, key, float(group["lr"]) * value / before["lr"] if key == "lr" and follows and before["lr"] else value)
    if follows:
        for key, value in new["schedule"].items():
            if key not in PROGRESS and old["schedule"].get(key) != value:
                setattr(scheduler, key, value)
    elif scheduler is not None:
        other, schedule = twin()
        for _ in range(scheduler.last_epoch):
            other.step()
            schedule.step()
        scheduler.load_state_dict(schedule.state_dict())
        for group, moved in zip(optimizer.param_groups, other.param_groups, strict=True):
            for key in new["groups"][0].keys() & moved.keys():
                _set(group, key, moved[key])


def _set(group: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(group.get(key), Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def _path(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: float(value) if isinstance(value, Tensor) and value.numel() == 1 else value for key, value in values.items()}
    numbers = {key: sorted(value.elements()) if isinstance(value, Counter) else value for key, value in numbers.items()}
    return {key: value for key, value in numbers.items() if key not in ("params", "name") and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
