"""Rendered scenes with labels for every kind of task: data that needs no download, in any amount and always the same."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from mtl_lightning.checks import between
from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.quantities import QUANTITIES, Quantity, blobs
from mtl_lightning.data.solids import Array
from mtl_lightning.data.transforms import finish
from mtl_lightning.data.world import Scene, draw_scene
from mtl_lightning.errors import ConfigError
from mtl_lightning.tasks.base import Task

SPLITS = ("train", "val", "test")
CACHE_LIMIT = 4 * 2**30
"""Bytes of a split that are kept at most."""
SMALLEST, LARGEST = 16, 2**14
"""Pixels of a picture's side at least and at most."""
MOST = 10**7
"""Scenes of a split: what is drawn for all of them before training fits into memory."""


class ScenesDataset(LabelledDataset):
    """A split of scenes. Row i of a split depends on (seed, split, i) alone, not on the number of rows or the order of calls.

    Args:
        split: ``train``, ``val`` or ``test``; no two share a scene.
        rows: number of scenes.
        size: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        seed: of the scenes and of what is hidden, >= 0.
        targets: task name → key of ``QUANTITIES``.
        hidden: task name → share of rows without its label, drawn for each task by itself.
        hidden_pixels: share of the pixels of every dense label that are hidden, in blobs.
        cache: render all rows now and keep them; otherwise render a row whenever it is asked for. Both give the same.

    Raises:
        ConfigError: the cache would take more than ``CACHE_LIMIT`` bytes.
    """

    def __init__(
        self,
        split: str,
        rows: int,
        size: tuple[int, int],
        channels: int,
        seed: int,
        targets: Mapping[str, str],
        hidden: Mapping[str, float],
        hidden_pixels: float = 0.0,
        cache: bool = True,
    ) -> None:
        self.name = split
        self.ids = [f"{split}/{index:06d}" for index in range(rows)]
        self.size, self.channels, self.seed = size, channels, seed
        self.quantities, self.hidden_pixels = dict(targets), hidden_pixels
        self._shown = {
            task: self._random(1, crc32(task.encode())).random(rows) >= hidden.get(task, 0.0) for task in self.quantities
        }
        self._kept: dict[str, Array] = {}
        self._labels: dict[int, dict[str, Array]] = {}
        if cache and rows:
            self._keep()

    def scene(self, index: int) -> Scene:
        """Render a row: everything that is known about it."""
        return draw_scene(self._random(0, index), self.size, self.channels)

    @property
    def nbytes(self) -> int:
        """What the cache takes."""
        return sum(values.nbytes for values in self._kept.values())

    def labelled(self, task: str) -> Array:
        """Bool [N]: which rows show their label of ``task``."""
        return self._shown[task]

    def targets(self, task: str, rows: Sequence[int]) -> Iterator[Tensor]:
        """The finished targets of some rows."""
        for row in rows:
            packed = self._labels[row] if row in self._labels and not self._quantity(task).dense else self._record(row)
            blank = tv_tensors.Image(torch.empty(self.channels, 1, 1, dtype=torch.uint8))
            yield finish({"id": self.ids[row], "image": blank, task: self._target(task, packed, row)})[task]

    def __getitem__(self, index: int) -> dict[str, Any]:
        packed = self._record(index)
        image = tv_tensors.Image(torch.from_numpy(packed["image"].copy()))
        shown = {task: self._target(task, packed, index) for task in self.quantities if self._shown[task][index]}
        return {"id": self.ids[index], "image": image, "size": self.size, **shown}

    def _quantity(self, task: str) -> Quantity:
        return QUANTITIES[self.quantities[task]]

    def _random(self, purpose: int, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.name), purpose, *key])

    def _target(self, task: str, packed: Mapping[str, Array], index: int) -> Tensor:
        quantity = self._quantity(task)
        target = quantity.unpack(packed[task], self.size)
        if quantity.dense and self.hidden_pixels:
            random = self._random(2, crc32(task.encode()), index)
            target[..., torch.from_numpy(blobs(random, self.size, self.hidden_pixels))] = 0
        return target

    def _record(self, index: int) -> dict[str, Array]:
        if self._kept:
            return {key: values[index] for key, values in self._kept.items()}
        scene = self.scene(index)
        packed = {task: self._quantity(task).pack(scene) for task in self.quantities}
        # Tasks read all the small labels when training starts: once rendered, these stay.
        self._labels[index] = {task: value for task, value in packed.items() if not self._quantity(task).dense}
        return {"image": scene.image, **packed}

    def _keep(self) -> None:
        first = self._record(0)
        needed = len(self) * sum(value.nbytes for value in first.values())
        if needed > CACHE_LIMIT:
            raise ConfigError(
                f"data.init_args.cache: {len(self)} {self.name} scenes of {self.size[0]} x {self.size[1]} pixels take "
                f"{needed / 2**30:.1f} GiB of memory, and at most {CACHE_LIMIT / 2**30:.0f} GiB are kept; set cache to false, "
                "or take fewer or smaller scenes"
            )
        kept = {key: np.empty((len(self), *value.shape), value.dtype) for key, value in first.items()}
        for index in range(len(self)):
            for key, value in self._record(index).items():
                kept[key][index] = value
        self._labels.clear()
        self._kept = kept


class ScenesDataModule(MultiTaskDataModule):
    """Lit solids on a floor, rendered here: shapes, colours, a number, a box, segmentation, depth and normals.

    Quantities: ``shape`` (class of the largest visible body), ``present`` (multi-label: shapes and colours that are visible),
    ``count`` (number of visible bodies, 1 to 5) and ``bodies`` (the same as a class or grade), ``light`` (the angle in degrees
    from which it comes, about the vertical: 0 is from behind the viewer, 90 from the right), ``box`` (around the largest: x0,
    y0, x1, y1 as fractions of width and height), ``segmentation`` (background, ground and the shapes), ``depth`` (metres along
    the camera's axis, 2 to 12, none for the background) and ``normals`` (camera frame, none for the background).
    :class:`~mtl_lightning.data.world.Scene` tells more.

    Args:
        train_size: rows of the training split.
        val_size: rows of the validation split.
        test_size: rows of the test split.
        size: height and width (or the square's side) that scenes are rendered at, each at least 16.
        targets: task name → quantity; a task that is not named here takes the quantity of its own name.
        hidden: share of the training rows without the label, 0..1, one for all tasks or task name → share (others: 0). Drawn
            for each task by itself: hiding more of one changes no other.
        hidden_eval: the same for validation and test.
        hidden_pixels: share 0..1 of the pixels of each dense training label that are hidden, in blobs.
        cache: render each split once, in ``setup``, and keep it in memory (about 36 KB a row at 64 x 64, at most 4 GiB a
            split); false renders each row whenever it is asked for. Both give the same rows.
        scene_seed: of the scenes and of what is hidden, >= 0. Runs that differ in ``seed`` alone share their data.
        **kwargs: of :class:`~mtl_lightning.data.base.MultiTaskDataModule`.

    Raises:
        ConfigError: a number out of its range.
    """

    size_hint: ClassVar[str] = "data.init_args.{split}_size"

    def __init__(
        self,
        train_size: int = 2000,
        val_size: int = 400,
        test_size: int = 400,
        size: int | tuple[int, int] = 64,
        targets: dict[str, str] | None = None,
        hidden: float | dict[str, float] = 0.5,
        hidden_eval: float = 0.0,
        hidden_pixels: float = 0.0,
        cache: bool = True,
        scene_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rows = {"train": train_size, "val": val_size, "test": test_size}
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.targets, self.hidden, self.hidden_eval = dict(targets or {}), hidden, hidden_eval
        self.hidden_pixels, self.cache, self.scene_seed = hidden_pixels, cache, scene_seed
        if scene_seed < 0:
            raise ConfigError(f"data.init_args.scene_seed is {scene_seed}, expected 0 or more")
        for split, rows in self.rows.items():
            between(f"data.init_args.{split}_size", rows, 0, MOST)
        if not SMALLEST <= min(self.size) <= max(self.size) <= LARGEST:
            raise ConfigError(f"data.init_args.size is {size}, expected {SMALLEST} to {LARGEST} pixels a side")
        named = {f"hidden.{task}": share for task, share in hidden.items()} if isinstance(hidden, dict) else {"hidden": hidden}
        for key, share in {**named, "hidden_eval": hidden_eval, "hidden_pixels": hidden_pixels}.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"data.init_args.{key} is {share}, expected a share from 0 to 1")

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        """Render the splits (or be ready to) and name classes, labels and numbers; raises :class:`ConfigError`."""
        chosen = {task: self.targets.get(task, task) for task in tasks}
        for name, task in tasks.items():
            _match(name, task, chosen[name])
        hidden = self.hidden if isinstance(self.hidden, dict) else dict.fromkeys(tasks, self.hidden)
        self.check_names("data.init_args.targets", self.targets)
        if isinstance(self.hidden, dict):
            self.check_names("data.init_args.hidden", self.hidden)
        return {
            split: ScenesDataset(
                split,
                self.rows[split],
                self.size,
                self.channels,
                self.scene_seed,
                chosen,
                hidden if split == "train" else dict.fromkeys(tasks, self.hidden_eval),
                self.hidden_pixels if split == "train" else 0.0,
                self.cache,
            )
            for split in splits
        }


def _match(name: str, task: Task, wanted: str) -> None:
    fitting = [key for key, quantity in QUANTITIES.items() if quantity.kind == task.kind]
    choice = f"for a {type(task).__name__} set it to one of: {', '.join(fitting)}"
    if wanted not in QUANTITIES:
        raise ConfigError(
            f"data.init_args.targets.{name}: scenes have no quantity '{wanted}', only {', '.join(QUANTITIES)}; {choice}"
        )
    quantity = QUANTITIES[wanted]
    if quantity.kind != task.kind:
        raise ConfigError(
            f"data.init_args.targets.{name}: '{wanted}' is of kind {quantity.kind}, but {type(task).__name__} learns "
            f"{task.kind}; {choice}"
        )
    if task.names is None and quantity.names:
        task.names = list(quantity.names)
    elif quantity.names and list(task.names or ()) != list(quantity.names):
        raise ConfigError(
            f"task '{name}' has the names {list(task.names or ())}, but '{wanted}' of scenes has {list(quantity.names)}; "
            "give it these, in this order, or leave them out where the task allows it"
        )
