"""Overlays of two pictures, a network for them, and batches out of memory: what config.yaml names by class path."""

import gzip
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import tv_tensors

from mtl_lightning.batch import Batch
from mtl_lightning.data import LabelledDataset, MultiTaskDataModule
from mtl_lightning.data.loader import Pick, ResumableLoader
from mtl_lightning.encoders import ImageEncoder, Stage
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.features import FeatureSpec
from mtl_lightning.tasks import Task

Bytes = NDArray[np.uint8]
GARMENTS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
NAMES = {"garment": GARMENTS, "digit": [str(digit) for digit in range(10)]}
SOURCES = {"garment": "FashionMNIST", "digit": "MNIST"}
SIDE, SMALL = 36, 28
HELD_OUT = 10_000
"""Training pictures that are the validation split."""


def read_idx(file: Path, dimensions: int) -> Bytes:
    """An array of a gzipped idx file.

    Raises:
        DataError: the file is missing, broken, or not of bytes with so many dimensions.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} cannot be read: {error}; data.init_args.root is to hold MNIST/raw and FashionMNIST/raw of four .gz files"
        ) from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(
            f"{file} begins with {content[:4].hex()}, expected an idx file of bytes, {bytes([0, 0, 8, dimensions]).hex()}"
        )
    shape = np.frombuffer(content, ">u4", dimensions, 4)
    if len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{file} promises {' x '.join(map(str, shape))} bytes and has {len(content) - header}; load it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(tuple(map(int, shape)))


def read(root: Path, part: str) -> tuple[dict[str, Bytes], dict[str, Bytes]]:
    """Pictures and classes of both sources, by task: ``part`` is train or t10k."""
    pictures, labels = {}, {}
    for task, source in SOURCES.items():
        folder = root / source / "raw"
        pictures[task] = read_idx(folder / f"{part}-images-idx3-ubyte.gz", 3)
        labels[task] = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 1)
        if pictures[task].shape[1:] != (SMALL, SMALL) or len(pictures[task]) != len(labels[task]) or labels[task].max() > 9:
            raise DataError(
                f"{folder}: {len(labels[task])} classes up to {labels[task].max()} for pictures {pictures[task].shape}, expected "
                f"one class of 0 to 9 for each picture of {SMALL} x {SMALL}"
            )
    return pictures, labels


def overlay(upper: Bytes, lower: Bytes) -> Bytes:
    """One [N, 28, 28] at the top left, one at the bottom right, the brighter pixel where both are: [N, 36, 36]."""
    canvas = np.zeros((len(upper), SIDE, SIDE), np.uint8)
    canvas[:, :SMALL, :SMALL] = upper
    np.maximum(canvas[:, -SMALL:, -SMALL:], lower, out=canvas[:, -SMALL:, -SMALL:])
    return canvas


class Overlays(LabelledDataset):
    """Overlaid pictures in memory, every one with both labels.

    Args:
        name: of the split.
        pictures: [N, 36, 36].
        labels: [N] by task.
    """

    def __init__(self, name: str, pictures: Bytes, labels: Mapping[str, Bytes]) -> None:
        self.name = name
        self.pictures = torch.from_numpy(pictures)[:, None]
        self.labels = {task: torch.from_numpy(classes.astype(np.int64)) for task, classes in labels.items()}
        self.ids = [f"{name}-{row}" for row in range(len(pictures))]

    def labelled(self, task: str) -> NDArray[np.bool_]:
        return np.ones(len(self), bool)

    def targets(self, task: str, rows: Sequence[int]) -> Iterator[Tensor]:
        return iter(self.labels[task][list(rows)])

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels = {task: classes[index] for task, classes in self.labels.items()}
        return {"id": self.ids[index], "image": tv_tensors.Image(self.pictures[index])} | labels


def part(name: str, pictures: Bytes, labels: Mapping[str, Bytes], rows: slice) -> Overlays:
    """Some rows as a split."""
    return Overlays(name, pictures[rows], {task: classes[rows] for task, classes in labels.items()})


class WholeBatches(ResumableLoader):
    """A loader's batches, each cut out of memory at once: row by row would cost more than the network.

    Args:
        loader: of a split of :class:`Overlays` that is not augmented.
        dataset: the split.
        tasks: names.
    """

    def __init__(self, loader: ResumableLoader, dataset: Overlays, tasks: Sequence[str]) -> None:
        super().__init__(
            loader.dataset,  # type: ignore[arg-type]
            {},
            loader.order,
            loader.batch_size or 1,
            loader.drop_last,
            num_workers=0,
            pin_memory=False,
        )
        self.rows_of, self.tasks = dataset, list(tasks)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.position = self.order.start // (self.batch_size or 1)
        for picks in self.batch_sampler:
            batch = self._cut(picks)  # type: ignore[arg-type]
            self.position += 1
            self.rows += len(batch)
            yield batch

    def _cut(self, picks: Sequence[Pick]) -> Batch:
        rows = torch.tensor([pick.row for pick in picks])
        known = torch.tensor([not pick.filler for pick in picks])
        return Batch(
            {"image": self.rows_of.pictures[rows].float().div_(255)},
            {task: self.rows_of.labels[task][rows] for task in self.tasks},
            dict.fromkeys(self.tasks, known),
            [self.rows_of.ids[row] for row in rows.tolist()],
            torch.full((len(rows), 2), SIDE),
        )


class MultiFashionDataModule(MultiTaskDataModule):
    """FashionMNIST at the top left, MNIST at the bottom right, paired at random; the tasks ``garment`` and ``digit``.

    Of the 60,000 pairs of the official training parts the last 10,000 are the validation split.

    Args:
        root: folder with MNIST/raw and FashionMNIST/raw.
        pairing: seed of who meets whom.
        rows: of the training split, the first; validation and test then have at most half as many. None takes all.
        kwargs: of :class:`MultiTaskDataModule`; there are no transforms here.
    """

    def __init__(self, root: str, pairing: int = 0, rows: int | None = None, **kwargs: Any) -> None:
        super().__init__(channels=1, **kwargs)
        if rows is not None and rows < 2:
            raise ConfigError(f"data.init_args.rows is {rows}, expected 2 or more, or null")
        if self.transforms["train"] or self.transforms["eval"] or self.image_size or self.mixing or self.balance:
            raise ConfigError("data.init_args: MultiFashionDataModule takes pictures as they are, without transforms or mixing")
        self.root, self.pairing, self.rows = Path(root), pairing, rows

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        for name, task in tasks.items():
            if name not in NAMES:
                raise ConfigError(f"model.tasks.{name}: there are no such labels; the tasks are {', '.join(NAMES)}")
            task.names = task.names or NAMES[name]
        found: dict[str, LabelledDataset] = {}
        if "train" in splits or "val" in splits:
            canvas, labels = self._pairs("train")
            cut = len(canvas) - min(HELD_OUT, len(canvas) // 2)
            train = cut if self.rows is None else min(cut, self.rows)
            found["train"] = part("train", canvas, labels, slice(train))
            found["val"] = part("val", canvas, labels, slice(cut, None if self.rows is None else cut + self.rows // 2))
        if "test" in splits:
            canvas, labels = self._pairs("t10k")
            found["test"] = part("test", canvas, labels, slice(None if self.rows is None else self.rows // 2))
        return {split: found[split] for split in splits}

    def _pairs(self, part: str) -> tuple[Bytes, dict[str, Bytes]]:
        pictures, labels = read(self.root, part)
        count = min(len(classes) for classes in labels.values())
        generator = np.random.default_rng((self.pairing, part == "train"))
        order = {task: generator.permutation(len(labels[task]))[:count] for task in NAMES}
        canvas = overlay(*(pictures[task][order[task]] for task in NAMES))
        return canvas, {task: labels[task][order[task]] for task in NAMES}

    def _whole(self, loader: ResumableLoader, split: str) -> WholeBatches:
        dataset = self.splits[split]
        assert isinstance(dataset, Overlays)
        return WholeBatches(loader, dataset, list(self.tasks or {}))

    def train_dataloader(self) -> WholeBatches:
        return self._whole(super().train_dataloader(), "train")

    def val_dataloader(self) -> WholeBatches:
        return self._whole(super().val_dataloader(), "val")

    def test_dataloader(self) -> WholeBatches:
        return self._whole(super().test_dataloader(), "test")


class LeNet(ImageEncoder):
    """Two convolutions of 5 x 5 with pooling, and one fully connected layer of 50, as in Sener and Koltun (2018).

    The last stage is a convolution over the whole 6 x 6 map of a 36 x 36 picture: its map of 50 x 1 x 1 is the vector that a
    fully connected layer gives, in the form that the heads read.
    """

    def __init__(self) -> None:
        stages = [
            Stage(nn.Sequential(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()), FeatureSpec(10, 2)),
            Stage(nn.Sequential(nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()), FeatureSpec(20, 4)),
            Stage(nn.Sequential(nn.Conv2d(20, 50, 6), nn.ReLU()), FeatureSpec(50, SIDE)),
        ]
        super().__init__(stages, in_channels=1, mean=0.1307, std=0.3081, smallest=SIDE)


class EpochSeconds(Callback):
    """Logs how long each epoch's training steps took, validation left out."""

    def __init__(self) -> None:
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop it."""
        if trainer.is_last_batch:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            record = {"seconds": time.perf_counter() - self._start, "epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                logger.log_metrics(record, step=max(0, trainer.global_step - 1))
