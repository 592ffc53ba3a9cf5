"""What the labels of one task and split look like: one kind of label a class, in memory that does not grow with the pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from mtl_lightning.tasks.base import Task

SAMPLED = 64
"""Pixels of a picture that medians of depth are taken from."""


@dataclass
class Shares:
    """How often each name occurs.

    Attributes:
        names: of classes or labels.
        counts: [C] rows or pixels.
        known: [C] of how many.
        rows: [C] rows in which each occurs.
        unit: what is counted.
    """

    names: Sequence[str]
    counts: np.ndarray
    known: np.ndarray
    rows: np.ndarray
    unit: str


@dataclass
class Spread:
    """The range of one number.

    Attributes:
        name: of the number.
        values: what was seen, or a sample of it.
        low: the smallest of all.
        high: the largest of all.
    """

    name: str
    values: np.ndarray
    low: float
    high: float


@dataclass
class Tally:
    """The labels of a task in a split, as they are added row by row.

    Args:
        task: names and kind.

    Attributes:
        labelled: rows.
        empty: labelled rows in which no pixel is labelled.
        pixels: of the labelled rows.
        measured: those with a label.
    """

    task: Task
    labelled: int = 0
    empty: int = 0
    pixels: int = 0
    measured: int = 0
    _values: list[np.ndarray] = field(default_factory=list)

    @property
    def unlabelled_share(self) -> float | None:
        """The share of the pixels of labelled rows without a label; None where labels are no pictures."""
        return 1 - self.measured / self.pixels if self.pixels else None

    def add(self, target: Tensor) -> None:
        """Count one row's finished target."""
        self.labelled += 1
        self.count(target)

    def count(self, target: Tensor) -> None:
        """What a kind of label counts beside rows."""

    def shares(self) -> Shares | None:
        """How often each name occurs, for labels that have names."""
        return None

    def spreads(self) -> list[Spread]:
        """Ranges, for labels that are numbers."""
        return []

    def _pixels(self, valid: Tensor) -> None:
        seen = int(valid.sum())
        self.pixels += valid.numel()
        self.measured += seen
        self.empty += seen == 0


class ClassTally(Tally):
    """One class a row."""

    def count(self, target: Tensor) -> None:
        """The class."""
        self._values.append(target.reshape(1).numpy())

    def shares(self) -> Shares:
        """Rows of each class."""
        names = list(self.task.names or ())
        index = np.concatenate(self._values) if self._values else np.zeros(0, dtype=np.int64)
        counts = np.bincount(index, minlength=len(names))
        return Shares(names, counts, np.full(len(names), len(index)), counts, "rows")


class MultiLabelTally(Tally):
    """Labels of 0 and 1, NaN where missing."""

    def count(self, target: Tensor) -> None:
        """The labels."""
        self._values.append(target.numpy())

    def shares(self) -> Shares:
        """Rows with each label."""
        names = list(self.task.names or ())
        table = np.stack(self._values) if self._values else np.zeros((0, len(names)))
        counts, known = np.nansum(table, 0).astype(int), (~np.isnan(table)).sum(0)
        return Shares(names, counts, known, counts, "rows")


class MaskTally(Tally):
    """A class for every pixel."""

    def count(self, target: Tensor) -> None:
        """The pixels of each class."""
        valid = target >= 0
        self._pixels(valid)
        self._values.append(np.bincount(target[valid].numpy(), minlength=len(self.task.names or ())))

    def shares(self) -> Shares:
        """Pixels of each class."""
        names = list(self.task.names or ())
        table = np.stack(self._values) if self._values else np.zeros((0, len(names)), dtype=np.int64)
        return Shares(names, table.sum(0), np.full(len(names), self.measured), (table > 0).sum(0), "pixels")


class NumberTally(Tally):
    """A vector of numbers, NaN where missing."""

    def count(self, target: Tensor) -> None:
        """The numbers."""
        self._values.append(target.numpy())

    def spreads(self) -> list[Spread]:
        """One a number that is known somewhere."""
        if not self._values:
            return []
        columns = np.stack(self._values).T
        known = [(name, column[~np.isnan(column)]) for name, column in zip(self.task.names or (), columns, strict=True)]
        return [Spread(name, values, values.min(), values.max()) for name, values in known if len(values)]


class DepthTally(Tally):
    """Metres for every pixel, 0 where there is none."""

    low, high = np.inf, -np.inf

    def count(self, target: Tensor) -> None:
        """The range, and some of the pixels."""
        valid = target > 0
        self._pixels(valid)
        metres = target[valid].numpy()
        if len(metres):
            self.low, self.high = min(self.low, float(metres.min())), max(self.high, float(metres.max()))
            self._values.append(metres[np.linspace(0, len(metres) - 1, min(SAMPLED, len(metres))).astype(int)])

    def spreads(self) -> list[Spread]:
        """The metres."""
        return [Spread("metres", np.concatenate(self._values), self.low, self.high)] if self._values else []


class NormalsTally(Tally):
    """A direction for every pixel, zero where there is none."""

    def count(self, target: Tensor) -> None:
        """Which pixels are measured."""
        self._pixels((target != 0).any(0))


TALLIES: dict[str, type[Tally]] = {
    "class": ClassTally,
    "multilabel": MultiLabelTally,
    "mask": MaskTally,
    "numbers": NumberTally,
    "angle": NumberTally,
    "depth": DepthTally,
    "normals": NormalsTally,
}
"""By the kind of a target."""
