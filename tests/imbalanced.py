"""Pictures in memory whose labels are mostly the same: rare marks, a rare class, a small blob."""

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

RATES = {"red": 0.06, "green": 0.3, "blue": 0.1}
NAMES = {"marks": list(RATES), "kind": ["usual", "rare", "rarer"], "odd": ["no", "yes"], "blob": ["ground", "blob"]}


class RareDataset(LabelledDataset):
    """``marks``: which channels are a little brighter; ``kind``: 80/15/5; ``odd``: 10 %; ``blob``: 4 of 144 pixels."""

    def __init__(self, name: str, rows: int, seed: int, hidden: float) -> None:
        random, self.name = np.random.default_rng(seed), name
        self.ids = [f"{name}-{row}" for row in range(rows)]
        self.marks = (random.random((rows, 3)) < list(RATES.values())).astype(np.float32)
        self.kind = random.choice(3, rows, p=[0.8, 0.15, 0.05])
        self.odd = (random.random(rows) < 0.1).astype(np.int64)
        pictures = random.normal(90, 30, (rows, 3, 12, 12)) + 12 * self.marks[:, :, None, None]
        pictures[:, :, :3] += 12 * self.kind[:, None, None, None]
        pictures[:, :, 9:] += 20 * self.odd[:, None, None, None]
        self.blob = np.zeros((rows, 12, 12), np.int64)
        for row, (y, x) in enumerate(random.integers(0, 10, (rows, 2))):
            self.blob[row, y : y + 2, x : x + 2] = 1
        pictures += 60 * self.blob[:, None]
        self.pictures = pictures.clip(0, 255).astype(np.uint8)
        self.shown = {task: random.random(rows) >= hidden for task in NAMES}

    def labelled(self, task: str) -> np.ndarray:
        return self.shown[task]

    def target(self, task: str, row: int) -> Tensor:
        value = getattr(self, task)[row]
        return torch.tensor(int(value)) if task in ("kind", "odd") else torch.from_numpy(np.array(value))

    def targets(self, task: str, rows: Sequence[int]) -> Iterator[Tensor]:
        return (self.target(task, row) for row in rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"id": self.ids[index], "image": tv_tensors.Image(torch.from_numpy(self.pictures[index]))}
        for task in NAMES:
            if self.shown[task][index]:
                target = self.target(task, index)
                sample[task] = ClassMap(target + 1) if task == "blob" else target
        return sample


class RareDataModule(MultiTaskDataModule):
    """Args: rows of the training split, of the others, the share of hidden training labels, of hidden validation labels."""

    def __init__(
        self, rows: int = 160, eval_rows: int = 120, hidden: float = 0.3, hidden_val: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.sizes = {"train": (rows, 1, hidden), "val": (eval_rows, 2, hidden_val), "test": (eval_rows, 3, 0.0)}

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        for name, task in tasks.items():
            task.names = NAMES[name]
        return {split: RareDataset(split, *self.sizes[split]) for split in splits}
