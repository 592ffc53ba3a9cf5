"""What a data module's splits look like before augmentation."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset


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
            ``id``; ``image``, a ``tv_tensors.Image`` uint8 [C, H, W]; ``size`` (height, width) as stored; and per labelled task
            a plain tensor (class index, numbers, 0/1 labels with NaN where missing), a :class:`~mtl_lightning.data.tv.ClassMap`,
            :class:`~mtl_lightning.data.tv.Depth`, :class:`~mtl_lightning.data.tv.Normals` or ``tv_tensors.BoundingBoxes`` with
            one box (which becomes x0, y0, x1, y1 as fractions of width and height).
        """
