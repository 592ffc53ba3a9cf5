"""A data module of 16 x 16 pictures in memory with three tasks that a tiny network learns in seconds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.tv import ClassMap
from mtl_lightning.tasks.base import Task

CLASSES = ["red", "green", "blue"]


class TinyDataset(LabelledDataset):
    """``color``: the brightest channel; ``level``: two numbers; ``mask``: which pixels are bright."""

    def __init__(
        self, name: str, rows: int, seed: int, hidden: Mapping[str, float], sizes: tuple[int, int], channels: int = 3
    ) -> None:
        generator, size = np.random.default_rng(seed), 16
        self.sizes, self.channels = sizes, channels
        self.name = name
        self.ids = [f"{name}-{row}" for row in range(rows)]
        self.color = generator.integers(0, 3, rows)
        pictures = generator.integers(0, 120, (rows, 3, size, size))
        pictures[np.arange(rows), self.color] += 60
        pictures[:, :, : size // 2] += generator.integers(0, 60, (rows, 1, 1, 1))
        self.pictures = pictures.astype(np.uint8)
        self.present = {task: generator.random(rows) >= hidden.get(task, 0.0) for task in ("color", "level", "mask")}

    def labelled(self, task: str) -> np.ndarray:
        return self.present[task]

    def target(self, task: str, row: int) -> Tensor:
        if task == "color":
            return torch.tensor(int(self.color[row]))
        picture = torch.from_numpy(self.pictures[row]).float() / 255
        if task == "level":
            return torch.stack([picture.mean(), picture[:, :8].mean()])
        return (picture.mean(0) > 0.35).long()

    def targets(self, task: str, rows: Sequence[int]) -> Iterator[Tensor]:
        return (self.target(task, row) for row in rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        height = self.sizes[0] + index % (self.sizes[1] - self.sizes[0] + 1)
        picture = torch.from_numpy(self.pictures[index])[: self.channels, :height]
        sample: dict[str, Any] = {"id": self.ids[index], "image": tv_tensors.Image(picture)}
        for task, present in self.present.items():
            if present[index]:
                target = self.target(task, index)
                sample[task] = ClassMap(target[:height] + 1) if task == "mask" else target
        return sample


class TinyDataModule(MultiTaskDataModule):
    """Args: rows of the training split, of the others, the shares of hidden labels per task, lowest and highest picture."""

    def __init__(
        self,
        rows: int = 48,
        eval_rows: int = 21,
        hidden: dict[str, float] | None = None,
        hidden_eval: dict[str, float] | None = None,
        sizes: tuple[int, int] = (16, 16),
        val_rows: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rows, self.eval_rows, self.val_rows = rows, eval_rows, eval_rows if val_rows is None else val_rows
        self.hidden, self.hidden_eval, self.sizes = hidden or {}, hidden_eval or {}, sizes

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        for name, names in {"color": CLASSES, "level": ["all", "top"]}.items():
            if name in tasks and tasks[name].names is None:
                tasks[name].names = names
        sizes = {
            "train": (self.rows, 1, self.hidden),
            "val": (self.val_rows, 2, self.hidden_eval),
            "test": (self.eval_rows, 3, self.hidden_eval),
        }
        return {split: TinyDataset(split, *sizes[split], self.sizes, self.channels) for split in splits if sizes[split][0]}
