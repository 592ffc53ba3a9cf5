"""What the command line's parser lets through: nulls, numbers that are none, and ranges of what is Lightning's own."""

import math
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from mtl_lightning.advice import roots
from mtl_lightning.checks import SEEDS, above, at_least, between
from mtl_lightning.errors import ConfigError
from mtl_lightning.hints import Types
from mtl_lightning.typos import defaults, find_class

TRAINER = {"max_epochs": -1, "max_steps": -1, "min_epochs": 0, "min_steps": 0, "accumulate_grad_batches": 1, "num_nodes": 1,
           "log_every_n_steps": 0, "check_val_every_n_epoch": 1, "num_sanity_val_steps": -1,
           "reload_dataloaders_every_n_epochs": 0, "limit_train_batches": 0, "limit_val_batches": 0, "limit_test_batches": 0,
           "limit_predict_batches": 0, "gradient_clip_val": 0}  # fmt: skip
"""The least values of what Lightning does not check, or checks when it is used."""


FIXED: dict[str, tuple[list[Any], str]] = {
    "default_root_dir": ([None], "and would not be used: a run's folder is RUNS/NAME; leave it out, and set runs and name"),
    "enable_checkpointing": ([None, True], "and a run is what its checkpoints are of; leave it out, and see checkpoint"),
    "barebones": ([False], "which takes away the checkpoints, metrics and progress that a run is made of; leave it out"),
}
"""Of the trainer's entries those that a run cannot change: what they may be, and why."""


def examine(command: str, config: Mapping[str, Any]) -> None:
    """Look through a resolved configuration.

    Args:
        command: the subcommand it is for.
        config: its part.

    Raises:
        ConfigError: null where there must be a value, a number that is not finite and not its class's own, a seed that no
            generator takes, or an entry of the trainer's that cannot hold.
    """
    for wrong in Types(roots(command))(config):
        if wrong.value is None or isinstance(wrong.value, bool):
            raise ConfigError(f"{wrong.key} is {yaml_word(wrong.value)}, expected {wrong.expected}")
    for key, value in _leaves("", config):
        if isinstance(value, float) and not math.isfinite(value):
            # Comparisons with NaN are all false: few ranges would see it.
            raise ConfigError(f"{key} is {value}, expected a finite number")
    if not isinstance(config["seed_everything"], bool):
        between("seed_everything", config["seed_everything"], 0, SEEDS)
    if config.get("weights_only") is False:
        raise ConfigError("weights_only is false, expected true or null: only tensors and plain values are loaded")
    _check_trainer(config["trainer"])


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    for name, (right, reason) in FIXED.items():
        if (value := trainer.get(name)) not in right:
            raise ConfigError(f"trainer.{name} is {yaml_word(value)}, {reason}")
    for name, least in TRAINER.items():
        if (value := trainer.get(name)) is not None:
            at_least(f"trainer.{name}", value, least)
    for name in ("max_time", "val_check_interval"):
        if isinstance(value := trainer.get(name), int | float):
            above(f"trainer.{name}", value, 0)
        elif isinstance(value, dict):
            _check_time(f"trainer.{name}", value)


def yaml_word(value: Any) -> str:
    """A plain value as a configuration writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check_time(key: str, value: Mapping[str, int]) -> None:
    try:
        time = timedelta(**value)
    except (TypeError, OverflowError):
        time = timedelta()
    if time <= timedelta():
        raise ConfigError(f"{key} is {value}, expected a time above 0 as days, hours, minutes and seconds: {{hours: 12}}")


def _leaves(key: str, config: Any) -> Iterator[tuple[str, Any]]:
    """All values but those that classes have by themselves."""
    if isinstance(config, Mapping):
        path, arguments = config.get("class_path"), config.get("init_args")
        if isinstance(path, str) and isinstance(arguments, Mapping) and (made := find_class(path, object)) is not None:
            own = defaults(made)
            changed = {name: value for name, value in arguments.items() if repr(own.get(name, ...)) != repr(value)}
            config = {**config, "init_args": changed}
        for name, value in config.items():
            yield from _leaves(f"{key}.{name}" if key else str(name), value)
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from _leaves(f"{key}[{number}]", value)
    else:
        yield key, config
