"""What is told of classes that were found in the training rows and not named in the configuration."""

from collections.abc import Mapping, Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.markup import escape

from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.tasks.base import Task

SHOWN = 10
"""Classes that a line lists."""
MANY = 10
"""Training rows of the largest class from which on a class of a single row is suspicious."""


def class_line(task: str, names: Sequence[str], counts: np.ndarray) -> str:
    """The classes of a task with their numbers of training rows.

    Args:
        task: its name.
        names: of the classes.
        counts: [C] training rows of each.
    """
    pairs = [f"{name} ({count})" for name, count in list(zip(names, counts.tolist(), strict=True))[:SHOWN]]
    rest = ["…"] if len(names) > SHOWN else []
    return f"{task}: {len(names)} class{'es' * (len(names) != 1)} found in the training rows: {', '.join(pairs + rest)}"


def suspicion(task: str, names: Sequence[str], counts: np.ndarray) -> str | None:
    """A sentence about classes that at most one training row has while others have many; None if there are none.

    Args:
        task: its name.
        names: of the classes.
        counts: [C] training rows of each, where rows that were left out do not count.
    """
    rare = [f"'{names[index]}'" for index in np.flatnonzero(counts <= 1).tolist()]
    if not rare or counts.max() < MANY:
        return None
    listed = ", ".join(rare[:SHOWN]) + (f" … ({len(rare)} in all)" if len(rare) > SHOWN else "")
    few = "a single" if counts.min() else "at most one"
    have = f"class {listed} has" if len(rare) == 1 else f"each of the classes {listed} has"
    return f"{task}: {have} {few} training row: a typo? Name the classes in model.tasks.{task}.init_args.classes to refuse others"


@rank_zero_only
def show_found(tasks: Mapping[str, Task], train: LabelledDataset) -> None:
    """Print the classes of each task with their training rows, and those that look like typos.

    Args:
        tasks: with classes that were found.
        train: the training split; no picture of it is opened.
    """
    console = Console(soft_wrap=True, highlight=False)
    for name, task in tasks.items():
        names = task.names or []
        rows = np.flatnonzero(train.labelled(name)).tolist()
        if not rows:
            continue  # an error that is about to be told
        counts = np.bincount([int(label) for label in train.targets(name, rows)], minlength=len(names))
        console.print(escape(class_line(name, names, counts)))
        if (warning := suspicion(name, names, counts)) is not None:
            console.print(f"[bold red]WARNING[/] {escape(warning)}")
