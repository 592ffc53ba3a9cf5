"""The pass over all rows: reads every file, collects every fault, counts labels and sizes."""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from mtl_lightning.analysis.check.tallies import TALLIES, Tally
from mtl_lightning.data.dataset import Examined, LabelledDataset, SomeRows
from mtl_lightning.tasks.base import Task

CHUNK = 256
"""Rows that are under way at a time."""
SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


class Fault(NamedTuple):
    """Something wrong with a row."""

    where: str
    problem: str

    @property
    def order(self) -> tuple[list[str | int], str]:
        """By file, then by number of the row."""
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", self.where)], self.problem


@dataclass
class Survey:
    """What the pass found.

    Attributes:
        faults: all of them, by file and row.
        bad: rows with at least one.
        stopping: rows that stop a run even where bad rows are skipped.
        rows: all rows.
        labelled: per split and task, labelled rows, the bad ones included.
        tallies: per task and split, of the good rows.
        sizes: per split, how many pictures have each height and width.
        modes: how many pictures are stored in each way.
        splits: the good rows of each split that has some.
    """

    faults: list[Fault] = field(default_factory=list)
    bad: int = 0
    stopping: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    labelled: dict[str, dict[str, int]] = field(default_factory=dict)
    tallies: dict[str, dict[str, Tally]] = field(default_factory=dict)
    sizes: dict[str, Counter[tuple[int, int]]] = field(default_factory=dict)
    modes: Counter[str] = field(default_factory=Counter)
    splits: dict[str, LabelledDataset] = field(default_factory=dict)


def survey(datasets: Mapping[str, LabelledDataset], tasks: Mapping[str, Task]) -> Survey:
    """Read every row of every split, in as many threads as there are cores, at most 8."""
    found = Survey(rows={split: len(dataset) for split, dataset in datasets.items()})
    found.tallies = {name: {split: TALLIES[task.target.kind](task) for split in datasets} for name, task in tasks.items()}
    with _Progress(sum(found.rows.values())) as progress:
        for split, dataset in datasets.items():
            found.sizes[split] = Counter()
            found.labelled[split] = {name: int(dataset.labelled(name).sum()) for name in tasks}
            good = np.ones(len(dataset), dtype=bool)
            for index, row in _examine(dataset, tasks):
                good[index] = not row.problems
                _count(found, split, dataset, index, row)
                progress.advance()
            if good.any():
                found.splits[split] = dataset if good.all() else SomeRows(dataset, np.flatnonzero(good))
    found.faults.sort(key=lambda fault: fault.order)
    return found


def _examine(dataset: LabelledDataset, tasks: Mapping[str, Task]) -> Iterator[tuple[int, Examined]]:
    Image.init()  # loads Pillow's plugins, which threads must not do at the same time
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(8, cores)) as pool:
        for start in range(0, len(dataset), CHUNK):
            rows = range(start, min(start + CHUNK, len(dataset)))
            yield from zip(rows, pool.map(lambda index: dataset.examine(index, tasks), rows), strict=True)


def _count(found: Survey, split: str, dataset: LabelledDataset, index: int, row: Examined) -> None:
    if row.problems:
        where, name = dataset.where(index), f"{dataset.ids[index]}, "  # which a problem may begin with, too
        found.faults += [Fault(where, problem.removeprefix(name)) for problem in row.problems]
    found.bad += bool(row.problems)
    found.stopping += row.stops
    if row.size is not None:
        found.sizes[split][row.size] += 1
    if row.mode is not None:
        found.modes[row.mode] += 1
    if not row.problems:
        for task, target in row.targets.items():
            found.tallies[task][split].add(target)


class _Progress:
    """A bar in a terminal, a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.told = total, 0, time.monotonic()
        console = Console()
        self._bar = Progress(console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> "_Progress":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("reading all rows", total=self.total)
        return self

    def advance(self) -> None:
        self.done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        elif time.monotonic() - self.told > SECONDS:
            self.told = time.monotonic()
            print(f"read {self.done} of {self.total} rows", flush=True)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
