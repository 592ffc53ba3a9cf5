"""One task's labels of all rows of a manifest, as compact arrays or as the paths of files."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from mtl_lightning.data.files import read_depth, read_mask, read_normals
from mtl_lightning.data.opening import MAX_PIXELS
from mtl_lightning.data.table import Texts
from mtl_lightning.data.tv import ClassMap, Depth, Normals
from mtl_lightning.errors import DataError

Size = tuple[int, int]
TOLERANCE = 1.0
"""Pixels that a box may stick out of its picture, for annotation tools that count from 1 or include the last pixel."""


class Labels(ABC):
    """One task's labels.

    Attributes:
        labelled: bool [N].
        texts: the cells as text where they name files, else None.
        values: [N] or [N, D], what decides the label where that is neither a file nor the picture's size, else None.
        needs_size: whether :meth:`stored` cannot do without the picture's size.
    """

    labelled: np.ndarray
    texts: Texts | None = None
    values: np.ndarray | None = None
    needs_size: ClassVar[bool] = False

    @abstractmethod
    def stored(self, row: int, size: Size | None) -> Tensor:
        """The label of a labelled row before augmentation.

        Args:
            row: of the manifest.
            size: height and width of its picture, which the label must fit; None if not known.

        Raises:
            DataError: its file is broken, or it does not fit the picture.
        """

    def finished(self, stored: Tensor) -> Tensor:
        """The same as a batch holds it."""
        return stored


class ClassLabels(Labels):
    """Class indices.

    Args:
        index: [N], -1 where there is no label.
    """

    def __init__(self, index: np.ndarray) -> None:
        self.values: np.ndarray = index.astype(np.int32)
        self.labelled = self.values >= 0

    def stored(self, row: int, size: Size | None) -> Tensor:
        """The index, int64 []."""
        return torch.tensor(int(self.values[row]))


class NumberLabels(Labels):
    """Vectors of numbers, or of 0/1.

    Args:
        values: [N, D], NaN where an entry is missing.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values: np.ndarray = values.astype(np.float32)
        self.labelled = np.asarray(~np.isnan(self.values).all(1))

    def stored(self, row: int, size: Size | None) -> Tensor:
        """The vector, float32 [D]."""
        return torch.from_numpy(self.values[row].copy())


class BoxLabels(Labels):
    """Boxes in pixels of the picture as it is seen.

    Args:
        corners: [N, 4] x0, y0, x1, y1, NaN where there is no label.
    """

    needs_size = True

    def __init__(self, corners: np.ndarray) -> None:
        self.corners = corners.astype(np.float32)
        self.labelled = np.asarray(~np.isnan(self.corners).any(1))

    def stored(self, row: int, size: Size | None) -> Tensor:
        """One bounding box."""
        if size is None:
            raise DataError("the size of the picture is needed to read a box")
        x0, y0, x1, y1 = self.corners[row].tolist()
        height, width = size
        if min(x0, y0) < -TOLERANCE or x1 > width + TOLERANCE or y1 > height + TOLERANCE:
            raise DataError(
                f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) leaves its picture, which is {width} wide and {height} high"
            )
        box: Tensor = tv_tensors.BoundingBoxes(torch.tensor([[x0, y0, x1, y1]]), format="XYXY", canvas_size=size)
        return box

    def finished(self, stored: Tensor) -> Tensor:
        """The corners as fractions of width and height, float32 [4] in 0..1."""
        height, width = stored.canvas_size  # type: ignore[attr-defined]
        corners = stored.as_subclass(Tensor)[0].float()
        return (corners / corners.new_tensor([width, height, width, height])).clamp(0, 1)


class FileLabels(Labels):
    """Labels that are files.

    Args:
        root: the folder that paths are relative to.
        texts: [N] the paths, empty where there is no label.
        max_pixels: what a file may have.
    """

    def __init__(self, root: str, texts: Texts, max_pixels: int = MAX_PIXELS) -> None:
        self.root = root
        self.max_pixels = max_pixels
        self.texts: Texts = texts
        self.labelled = texts.filled

    @abstractmethod
    def read(self, text: str) -> Tensor:
        """The label in a file."""

    def stored(self, row: int, size: Size | None) -> Tensor:
        """The label, as high and wide as the picture."""
        text = self.texts[row]
        label = self.read(text)
        if size is not None and tuple(label.shape[-2:]) != size:
            height, width = label.shape[-2:]
            raise DataError(
                f"{text} is {width} wide and {height} high, its picture {size[1]} wide and {size[0]} high; they must agree"
            )
        return label


class MaskLabels(FileLabels):
    """A class for every pixel.

    Args:
        root: the folder that paths are relative to.
        texts: [N] the paths.
        classes: class index of each value in the files, -1 for values that mean no label. A table from the smallest value to the
            largest is made.
        max_pixels: what a file may have.
    """

    def __init__(self, root: str, texts: Texts, classes: dict[int, int], max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(root, texts, max_pixels)
        self.classes = classes
        self.low, high = min(classes), max(classes)
        # One more entry at each end for whatever lies outside; -1 is a value nobody named.
        self.lookup = np.full(high - self.low + 3, -1, dtype=np.int32)
        for value, index in classes.items():
            self.lookup[value - self.low + 1] = index + 1
        self.dtype = torch.uint8 if max(classes.values()) < 255 else torch.int32

    def read(self, text: str) -> Tensor:
        """A :class:`ClassMap` [H, W]."""
        values = read_mask(self.root, text, self.max_pixels)
        low, high = int(values.min()), int(values.max())
        last = len(self.lookup) - 1
        if low < self.low or high > self.low + last - 2:
            positions: np.ndarray = np.clip(values.astype(np.int64), self.low - 1, self.low + last - 1) - (self.low - 1)
        else:
            positions = values.astype(np.int32) - (self.low - 1)
        shifted = self.lookup[positions]
        if (shifted < 0).any():
            found, counts = np.unique(values[shifted < 0], return_counts=True)
            some = ", ".join(f"{value} ({count} pixels)" for value, count in list(zip(found, counts, strict=True))[:8])
            named = ", ".join(map(str, sorted(self.classes)[:20]))
            raise DataError(
                f"{text} has the values {some}, expected only {named}; name them in the column's values, or list them in ignore"
            )
        return ClassMap(torch.from_numpy(shifted).to(self.dtype))

    def finished(self, stored: Tensor) -> Tensor:
        """int64 [H, W], -1 where there is no label."""
        return stored.as_subclass(Tensor).long() - 1


class DepthLabels(FileLabels):
    """Metres for every pixel.

    Args:
        root: the folder that paths are relative to.
        texts: [N] the paths.
        scale: metres per unit of the files.
        max_pixels: what a file may have.
    """

    def __init__(self, root: str, texts: Texts, scale: float, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(root, texts, max_pixels)
        self.scale = scale

    def read(self, text: str) -> Tensor:
        """A :class:`Depth` [1, H, W]."""
        return Depth(torch.from_numpy(read_depth(self.root, text, self.scale, self.max_pixels)))

    def finished(self, stored: Tensor) -> Tensor:
        """float32 [1, H, W], 0 where there is no label."""
        return stored.as_subclass(Tensor)


class NormalsLabels(FileLabels):
    """A surface normal for every pixel."""

    def read(self, text: str) -> Tensor:
        """A :class:`Normals` [3, H, W]."""
        return Normals(torch.from_numpy(np.ascontiguousarray(read_normals(self.root, text, self.max_pixels))))

    def finished(self, stored: Tensor) -> Tensor:
        """float32 [3, H, W], zero vectors where there is no label."""
        return stored.as_subclass(Tensor)
