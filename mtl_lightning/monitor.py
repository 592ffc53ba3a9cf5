"""Which logged values can be followed by checkpoints and schedules."""

import lightning.pytorch as pl

from mtl_lightning.errors import ConfigError


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
        known |= {f"val/{task.name}/{metric}" for metric in ("loss", *task.measures)} | {f"train/{task.name}/loss"}
    if monitor not in known:
        raise ConfigError(f"{key} is {monitor}, which is never logged; there are: {', '.join(sorted(known))}")
