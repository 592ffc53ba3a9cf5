"""What a data module's splits look like before augmentation."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from mtl_lightning.data.transforms import finish
from mtl_lightning.errors import DataError
from mtl_lightning.tasks.base import Task


@dataclass
class Examined:
    """What could be read of one row, and everything that is wrong with it.

    Attributes:
        targets: finished, by task.
        size: height and width of the picture as stored.
        mode: how its pixels are stored (``RGB``, ``L``…); None if not known.
        problems: in words, without file and row.
        stops: whether a run stops here even if bad rows are to be skipped.
    """

    targets: dict[str, Tensor] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    mode: str | None = None
    problems: list[str] = field(default_factory=list)
    stops: bool = False


class LabelledDataset(Dataset[dict[str, Any]]):
    """Rows of which each carries some of the labels.

    Attributes:
        ids: the rows' names, for errors and predictions (a file's path, say).
        name: what the split is called in messages.
    """

    ids: Sequence[str]
    name: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def labelled(self, task: str) -> np.ndarray:
        """Bool [N]: which rows have a label of ``task``. Cheap: opens no file."""

    @abstractmethod
    def targets(self, task: str, rows: Sequence[int]) -> Iterator[Tensor]:
        """The finished targets (as in a batch, before augmentation) of some labelled rows, without opening images."""

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row before augmentation.

        Returns:
            ``id``; ``image``, a ``tv_tensors.Image`` uint8 [C, H, W] (or ``text``, a string, where the data module's
            ``transform`` makes ids of it); ``size`` (height, width) as stored; and per labelled task
            a plain tensor (class index, numbers, 0/1 labels with NaN where missing), a :class:`~mtl_lightning.data.tv.ClassMap`,
            :class:`~mtl_lightning.data.tv.Depth`, :class:`~mtl_lightning.data.tv.Normals` or ``tv_tensors.BoundingBoxes`` with
            one box (which becomes x0, y0, x1, y1 as fractions of width and height).
        """

    def where(self, index: int) -> str:
        """What messages call a row."""
        return f"{self.name}, row {index} ({self.ids[index]})"

    def examine(self, index: int, tasks: Mapping[str, Task]) -> Examined:
        """Read a row before augmentation and check its labels; what is wrong is told and not raised."""
        try:
            sample = self[index]
            targets = {key: value for key, value in finish(sample).items() if key in tasks and value is not None}
        except DataError as error:
            return Examined(problems=[str(error)])
        problems = []
        for name, target in targets.items():
            try:
                tasks[name].check(target, self.ids[index])
            except DataError as error:
                problems.append(str(error))
        return Examined(targets, tuple(sample.get("size", sample["image"].shape[-2:])), None, problems)


class SomeRows(LabelledDataset):
    """A part of a split.

    Args:
        dataset: the whole.
        rows: which rows, by their positions in it.
    """

    def __init__(self, dataset: LabelledDataset, rows: np.ndarray) -> None:
        self.dataset, self.rows, self.name = dataset, rows, dataset.name
        self.ids = [dataset.ids[row] for row in rows.tolist()]

    def labelled(self, task: str) -> np.ndarray:
        """Bool [N]: which rows have a label of ``task``."""
        chosen: np.ndarray = self.dataset.labelled(task)[self.rows]
        return chosen

    def targets(self, task: str, rows: Sequence[int]) -> Iterator[Tensor]:
        """The finished targets of some labelled rows."""
        return self.dataset.targets(task, self.rows[list(rows)].tolist())

    def where(self, index: int) -> str:
        """As in the whole."""
        return self.dataset.where(int(self.rows[index]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[int(self.rows[index])]
