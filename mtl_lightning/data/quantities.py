"""What a task can learn from a rendered scene, how it is kept in little memory, and which pixels are hidden."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from mtl_lightning.batch import Kind
from mtl_lightning.data.solids import SHAPES, Array
from mtl_lightning.data.tv import ClassMap, Depth, Normals
from mtl_lightning.data.world import MOST, PRESENT, SURFACES, Scene


@dataclass(frozen=True)
class Quantity:
    """Something to predict.

    Attributes:
        kind: of the tasks that can learn it.
        names: of its classes, labels or numbers; empty where there are none.
        pack: how a scene's value is kept, compactly.
        unpack: from there to a sample's target, given the picture's height and width.
    """

    kind: Kind
    names: tuple[str, ...]
    pack: Callable[[Scene], Array]
    unpack: Callable[[Array, tuple[int, int]], Tensor]

    @property
    def dense(self) -> bool:
        """Whether there is a value for every pixel."""
        return self.kind in ("mask", "depth", "normals")


def _float(packed: Array, _: tuple[int, int]) -> Tensor:
    return torch.from_numpy(packed.astype(np.float32))


def _normals(packed: Array, _: tuple[int, int]) -> Tensor:
    normals = torch.from_numpy(packed.astype(np.float32))
    return Normals(torch.nn.functional.normalize(normals, dim=0))


def _box(packed: Array, size: tuple[int, int]) -> Tensor:
    corners = torch.from_numpy(packed[None].astype(np.float32))
    box: Tensor = tv_tensors.BoundingBoxes(corners, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)
    return box


def _azimuth(scene: Scene) -> float:
    right, _, towards = scene.world.light
    return math.degrees(math.atan2(right, towards))


QUANTITIES: dict[str, Quantity] = {
    "shape": Quantity("class", SHAPES, lambda scene: scene.shapes[0], lambda packed, _: torch.tensor(int(packed))),
    "present": Quantity("multilabel", PRESENT, lambda scene: scene.present, _float),
    "count": Quantity("numbers", ("count",), lambda scene: np.array([len(scene.shapes)], np.float32), _float),
    "bodies": Quantity(
        "class",
        tuple(str(number) for number in range(1, MOST + 1)),
        lambda scene: np.array(len(scene.shapes) - 1),
        lambda packed, _: torch.tensor(int(packed)),
    ),
    "light": Quantity("angle", ("light",), lambda scene: np.array([_azimuth(scene)], np.float32), _float),
    "box": Quantity("numbers", ("x0", "y0", "x1", "y1"), lambda scene: scene.boxes[0], _box),
    "segmentation": Quantity(
        "mask",
        SURFACES,
        lambda scene: scene.segmentation,
        lambda packed, _: ClassMap(torch.from_numpy(packed.astype(np.int64) + 1)),
    ),
    "depth": Quantity(
        "depth",
        (),
        lambda scene: scene.depth.astype(np.float16)[None],
        lambda packed, _: Depth(torch.from_numpy(packed.astype(np.float32))),
    ),
    # A step of 1/127 is at most 0.4 degrees.
    "normals": Quantity("normals", (), lambda scene: np.rint(scene.normals * 127).astype(np.int8), _normals),
}
"""What a task can learn from scenes, by name; :class:`~mtl_lightning.data.world.Scene` says what each is."""


def blobs(random: np.random.Generator, size: tuple[int, int], share: float) -> Array:
    """A few connected regions, bool [H, W], of exactly this share of the pixels (rounded): where a random field is lowest."""
    knots = np.arange(6)
    places = [np.linspace(0, knots[-1], side)[:, None] for side in size]
    rows, columns = (np.maximum(1 - np.abs(place - knots), 0) for place in places)
    field = (rows @ random.random((len(knots), len(knots))) @ columns.T).ravel()
    hidden = np.zeros(field.size, bool)
    hidden[np.argsort(field, kind="stable")[: round(share * field.size)]] = True
    return hidden.reshape(size)
