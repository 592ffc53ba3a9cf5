"""An epoch in which every class of a task comes equally often."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.tasks.base import Task


def balanced_order(classes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As many rows as there are, each class of the labelled ones as often as any other.

    Rows without a label keep their share: as many of them are drawn as there are. How often a row comes differs by one at most
    from its expectation, n / (C * n_c) for the labelled rows n, the C classes that are there, and the n_c rows of its class
    (systematic resampling; J. Carpenter, P. Clifford, P. Fearnhead, IEE Proceedings Radar, Sonar and Navigation 1999, "Improved
    particle filter for nonlinear problems"): independent draws would leave out a third of the rows of a class for nothing.

    Args:
        classes: int64 [N], the class of each row, -1 where it has no label.
        generator: decides everything else.

    Returns:
        Rows [N] and, for each, how many times the same row came before in this order [N]. Counts of two classes differ by one at
        most, and so does the count of unlabelled rows from their number.
    """
    labelled = classes >= 0
    _, which, counts = torch.unique(classes[labelled], return_inverse=True, return_counts=True)
    weights = torch.ones(len(classes), dtype=torch.float64)
    weights[labelled] = (labelled.sum().double() / (len(counts) * counts.double()))[which]
    # Rows of a class lie side by side, in random order within it.
    shuffled = torch.randperm(len(classes), generator=generator)
    sorted_rows = shuffled[classes[shuffled].argsort(stable=True)]
    ends = weights[sorted_rows].cumsum(0)
    points = torch.arange(len(classes), dtype=torch.float64) + torch.rand((), generator=generator, dtype=torch.float64)
    drawn = torch.searchsorted(ends, points * (ends[-1] / len(classes)), right=True).clamp_max(len(classes) - 1)
    copies = torch.arange(len(drawn)) - torch.searchsorted(drawn, drawn)
    order = torch.randperm(len(drawn), generator=generator)
    return sorted_rows[drawn][order], copies[order]


def check_balanced(name: str, tasks: Mapping[str, Task]) -> None:
    """Raise :class:`ConfigError` if what is to be balanced has no classes, or is a task whose loss is balanced already.

    Args:
        name: of the task.
        tasks: of the run.
    """
    balanceable = [task for task, kind in tasks.items() if kind.kind == "class"]
    if name not in balanceable:
        why = f"is a {type(tasks[name]).__name__}" if name in tasks else "is not among the tasks of this run"
        which = f"set it to {' or '.join(balanceable)}" if balanceable else "leave it out"
        raise ConfigError(f"data.init_args.balance is {name}, which {why}; it takes a task with one class per image: {which}")
    if tasks[name].balanced:
        raise ConfigError(
            f"data.init_args.balance is {name}, whose loss weighs rare classes up already (class_weights: balanced): "
            "both together would do it twice; leave one of them out"
        )
