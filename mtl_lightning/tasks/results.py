"""What a task says about one picture, in plain typed objects: for people, for a row of a table, for files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def text(value: Any) -> str:
    """A value as a cell."""
    if isinstance(value, list | tuple):
        return "|".join(map(text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Result:
    """One task's prediction for one picture."""

    def cells(self) -> dict[str, str]:
        """What stands in a table, by column: ``""`` is the task's own, others are called ``TASK.COLUMN``."""
        return {}

    def save(self, stem: Path) -> dict[str, Path]:
        """Write what does not fit into a cell.

        Args:
            stem: path of the files without their suffix.

        Returns:
            The files by column, as :meth:`cells`.
        """
        return {}


@dataclass(frozen=True)
class Value(Result):
    """Whatever a task without a result class of its own decodes."""

    value: Any

    def cells(self) -> dict[str, str]:
        """The value."""
        return {"": text(self.value)}


@dataclass(frozen=True)
class Category(Result):
    """One class.

    Attributes:
        name: of the class.
        probability: its probability, 0..1.
        probabilities: of all classes by name; they add up to 1.
    """

    name: str
    probability: float
    probabilities: dict[str, float]

    def cells(self) -> dict[str, str]:
        """The name, and ``probability``."""
        return {"": self.name, "probability": text(self.probability)}


@dataclass(frozen=True)
class Labels(Result):
    """Several labels, each there or not.

    Attributes:
        names: of the labels that hold.
        probabilities: of all labels by name, each 0..1.
    """

    names: list[str]
    probabilities: dict[str, float]

    def cells(self) -> dict[str, str]:
        """The names, joined by ``|``, and the probability of each label."""
        return {"": text(self.names)} | {name: text(value) for name, value in self.probabilities.items()}


@dataclass(frozen=True)
class Numbers(Result):
    """Numbers in real units.

    Attributes:
        values: by name.
        unit: of the numbers; may be empty.
        deviations: the standard deviations that the network itself expects, by name; None where it says nothing of them.
    """

    values: dict[str, float]
    unit: str = ""
    deviations: dict[str, float] | None = None

    def cells(self) -> dict[str, str]:
        """A number each, one alone in the task's own column; deviations in ``std`` or ``NAME.std``."""
        alone = len(self.values) == 1
        cells = {"" if alone else name: text(value) for name, value in self.values.items()}
        return cells | {"std" if alone else f"{name}.std": text(value) for name, value in (self.deviations or {}).items()}


@dataclass(frozen=True)
class Box(Result):
    """A box in pixels of the stored picture, from its upper left corner; it may reach beyond the picture."""

    x0: float
    y0: float
    x1: float
    y1: float

    def cells(self) -> dict[str, str]:
        """The four corners."""
        return {name: text(getattr(self, name)) for name in ("x0", "y0", "x1", "y1")}


@dataclass(frozen=True)
class Mask(Result):
    """A class for every pixel.

    Attributes:
        mask: class indices [H, W], uint8 (int32 for more than 256 classes); 255 (-1) where the network did not look.
        classes: their names.
        colors: of the classes, [C, 3] in 0..255.
    """

    mask: np.ndarray
    classes: list[str]
    colors: list[tuple[int, int, int]]

    def save(self, stem: Path) -> dict[str, Path]:
        """A PNG whose pixel values are class indices: with a palette, or of 16 bits for more than 256 classes."""
        path = stem.with_name(stem.name + ".png")
        if self.mask.dtype == np.uint8:
            picture = Image.fromarray(self.mask)
            flat = [part for color in self.colors[:256] for part in color]
            # What the network did not look at is grey.
            picture.putpalette((flat + [153] * (768 - len(flat)))[:768])
        else:
            picture = Image.fromarray(self.mask.astype(np.uint16))
        picture.save(path)
        return {"": path}


@dataclass(frozen=True)
class DepthMap(Result):
    """A distance for every pixel.

    Attributes:
        depth: float32 [H, W] in ``unit``; 0 where the network did not look.
        unit: of the labels.
        step: units per grey level of the PNG.
    """

    depth: np.ndarray
    unit: str
    step: float

    def save(self, stem: Path) -> dict[str, Path]:
        """NPY with the numbers, and a PNG of 16 bits in ``step`` units, cut at 65535."""
        array, picture = stem.with_name(stem.name + ".npy"), stem.with_name(stem.name + ".png")
        np.save(array, self.depth)
        Image.fromarray((self.depth / self.step).round().clip(0, 65535).astype(np.uint16)).save(picture)
        return {"": array, "png": picture}


@dataclass(frozen=True)
class NormalMap(Result):
    """A direction for every pixel.

    Attributes:
        normals: float32 [H, W, 3], unit vectors; zero where the network did not look.
    """

    normals: np.ndarray

    def save(self, stem: Path) -> dict[str, Path]:
        """NPY with the vectors, and a PNG with (n * 0.5 + 0.5) * 255 in red, green and blue, black for none."""
        array, picture = stem.with_name(stem.name + ".npy"), stem.with_name(stem.name + ".png")
        np.save(array, self.normals)
        coded = ((self.normals * 0.5 + 0.5) * 255).round().clip(0, 255)
        coded[~self.normals.any(-1)] = 0
        Image.fromarray(coded.astype(np.uint8)).save(picture)
        return {"": array, "png": picture}
