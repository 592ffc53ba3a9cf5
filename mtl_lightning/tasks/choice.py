"""Which of the configured tasks a run has, under names that everything else can use."""

import re
from collections.abc import Mapping

from torch import nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.tasks.base import Task

RESERVED = {
    *("image", "text", "words", "id", "size", "score", "loss", "delta_m", "epoch", "step", "train", "val", "test"),
    *dir(nn.ModuleDict()),
}
"""Names that logs, batches and modules use themselves."""


def choose_tasks(tasks: Mapping[str, Task], only: list[str] | None) -> dict[str, Task]:
    """The tasks of a run, in the order of the configuration.

    Args:
        tasks: the configured ones.
        only: the chosen ones; None takes all.

    Raises:
        ConfigError: a name that cannot be one, or that nothing is configured for.
    """
    if not tasks:
        raise ConfigError("model.tasks is empty; name at least one task")
    for name in tasks:
        if not name.isidentifier() or re.search("__", name):
            raise ConfigError(f"model.tasks: '{name}' is no task name; use letters, digits and single underscores, e.g. head_box")
        if name in RESERVED:
            raise ConfigError(f"model.tasks: '{name}' is a reserved word; choose another name, e.g. {name}_label")
    if only is None:
        return dict(tasks)
    unknown = [name for name in only if name not in tasks]
    if unknown or not only:
        raise ConfigError(f"model.only names {unknown or 'no task'}; the configured tasks are {list(tasks)}")
    return {name: task for name, task in tasks.items() if name in only}
