"""How many rows of each split carry each label, as a table."""

from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table


@rank_zero_only
def show_counts(counts: Mapping[str, Mapping[str, tuple[int, int]]], tasks: Sequence[str], shown: Sequence[str]) -> None:
    """Print labelled and all rows, with a warning where a task has no label in the validation split.

    Args:
        counts: per split and task the labelled rows and all rows.
        tasks: names, a line each.
        shown: the splits, a column each.
    """
    splits = [split for split in counts if split in shown]
    table = Table(title="labelled / all rows")
    table.add_column("task")
    for split in splits:
        table.add_column(split, justify="right")
    lonely = []
    for task in tasks:
        cells = []
        for split in splits:
            labelled, rows = counts[split][task]
            cells.append(f"{labelled} / {rows}" if labelled else f"[bold red]NONE[/] / {rows}")
            if not labelled and split == "val":
                lonely.append(task)
        table.add_row(task, *cells)
    if lonely:
        table.caption = (
            f"[bold red]WARNING[/] no validation label for {', '.join(lonely)}: "
            "not evaluated in training, left out of val/score, and cannot be monitored"
        )
    Console().print(table)
