"""What a training step costs beside a bare torch loop: the same network, losses and optimizer, in turns in one process.

    python experiments/step_cost/measure.py

Batches are in memory. Every epoch of the run (`fit` as a user calls it, with progress, metrics.csv and checkpoints) is followed
by as many steps of a loop in plain torch; a pair is one epoch of each. The time of an epoch runs from its first batch handed out
to its last step done, logging included and the epoch's end (its checkpoint) not.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import tv_tensors

from mtl_lightning.batch import Batch, Collate
from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.encoders import ImageEncoder, ResNet, Stage
from mtl_lightning.features import FeatureSpec
from mtl_lightning.main import main as command_line
from mtl_lightning.tasks import Task

KINDS = ("Classification", "MultiLabel", "Regression")
OUTPUTS = {"Classification": 5, "MultiLabel": 4, "Regression": 3}
LABELLED = 0.6
PAIRS: list[tuple[float, float]] = []
"""Milliseconds a step of each pair: ours, the bare loop's."""


def kind_of(task: str) -> str:
    return KINDS[int(task.removeprefix("t")) % len(KINDS)]


class LinearTrunk(ImageEncoder):
    """One linear layer: a network that costs next to nothing."""

    def __init__(self, side: int = 8, width: int = 64) -> None:
        body = nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, width), nn.Unflatten(1, (width, 1, 1)))
        super().__init__([Stage(body, FeatureSpec(width, side))], 3, mean=0.0, std=1.0)


class Memory:
    """Batches that are there already, and when the first and the last of an epoch were asked for."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.start = self.seconds = 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        self.start = time.perf_counter()
        yield from self.batches


class Rows(LabelledDataset):
    """Random labels of random pictures."""

    def __init__(self, tasks: Mapping[str, Task], rows: int, side: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = [str(row) for row in range(rows)]
        self.images = torch.rand(rows, 3, side, side, generator=generator)
        self.values: dict[str, Tensor] = {}
        self.present = {}
        for name in tasks:
            kind, outputs = kind_of(name), OUTPUTS[kind_of(name)]
            if kind == "Classification":
                self.values[name] = torch.randint(outputs, (rows,), generator=generator)
            elif kind == "MultiLabel":
                self.values[name] = torch.randint(2, (rows, outputs), generator=generator).float()
            else:
                self.values[name] = torch.randn(rows, outputs, generator=generator)
            self.present[name] = (torch.rand(rows, generator=generator) < LABELLED).numpy()

    def labelled(self, task: str) -> Any:
        return self.present[task]

    def targets(self, task: str, rows: Sequence[int]) -> Iterator[Tensor]:
        return (self.values[task][row] for row in rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {name: values[index] for name, values in self.values.items() if self.present[name][index]}
        return row | {"id": self.ids[index], "image": tv_tensors.Image(self.images[index])}


class MemoryDataModule(MultiTaskDataModule):
    """Args: batches of an epoch, side of the pictures."""

    def __init__(self, batches: int = 200, side: int = 8, **kwargs: Any) -> None:
        super().__init__(num_workers=0, **kwargs)
        self.batches, self.side = batches, side

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        for name, task in tasks.items():
            if task.names is None:
                task.names = [f"{name}-{index}" for index in range(OUTPUTS[kind_of(name)])]
        return {"train": Rows(tasks, self.batches * self.batch_size, self.side)}

    def train_dataloader(self) -> Any:
        rows = self.splits["train"]
        collate = Collate({name: task.target for name, task in (self.tasks or {}).items()})
        size = self.batch_size
        return Memory([collate([rows[row] for row in range(size * step, size * (step + 1))]) for step in range(self.batches)])


class BareNetwork(nn.Module):
    """What one would write for these tasks alone."""

    def __init__(self, trunk: nn.Module, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: nn.Linear(width, OUTPUTS[kind_of(task)]) for task in tasks})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.trunk(image)
        if features.ndim == 4:
            features = features.mean((2, 3))
        return {task: head(features) for task, head in self.heads.items()}


def bare_trunk(resnet: bool) -> tuple[nn.Module, int]:
    if not resnet:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 64)), 64
    return nn.Sequential(*(stage.body for stage in ResNet("resnet18").stages)), 512


class BareLoop(pl.Callback):
    """After each epoch of the run as many steps of plain torch, on the same batches.

    Args:
        resnet: the trunk is a ResNet-18 and not a linear layer.
    """

    def __init__(self, resnet: bool = False) -> None:
        self.resnet = resnet
        self.network: BareNetwork | None = None
        self.ours = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch:
            self.ours = time.perf_counter() - trainer.train_dataloader.start  # type: ignore[union-attr]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        batches: list[Batch] = trainer.train_dataloader.batches  # type: ignore[union-attr]
        if self.network is None:
            self.network = BareNetwork(*bare_trunk(self.resnet), list(pl_module.tasks))
            self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        start = time.perf_counter()
        for batch in batches:
            self.step(batch)
        bare = time.perf_counter() - start
        if trainer.current_epoch:  # the first warms up
            PAIRS.append((1000 * self.ours / len(batches), 1000 * bare / len(batches)))

    def step(self, batch: Batch) -> None:
        assert self.network is not None
        predictions = self.network(batch.inputs["image"])
        loss = torch.zeros(())
        for task, prediction in predictions.items():
            rows = batch.labelled[task]
            chosen, target = prediction[rows], batch.targets[task][rows]
            kind = kind_of(task)
            if kind == "Classification":
                loss = loss + F.cross_entropy(chosen, target)
            elif kind == "MultiLabel":
                loss = loss + F.binary_cross_entropy_with_logits(chosen, target)
            else:
                loss = loss + F.mse_loss(chosen, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def config(tasks: int, resnet: bool, pairs: int, steps: int) -> dict[str, Any]:
    encoder = {"class_path": "ResNet"} if resnet else {"class_path": f"{__name__}.LinearTrunk"}
    return {
        "model": {
            "tasks": {f"t{task}": {"class_path": kind_of(f"t{task}")} for task in range(tasks)},
            "encoder": encoder,
            "weighting": {"class_path": "Equal"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        },
        "data": {
            "class_path": f"{__name__}.MemoryDataModule",
            "init_args": {"batches": steps, "side": 64 if resnet else 8, "batch_size": 32},
        },
        "trainer": {
            "max_epochs": pairs + 1,
            "accelerator": "cpu",
            "callbacks": [{"class_path": f"{__name__}.BareLoop", "init_args": {"resnet": resnet}}],
        },
    }


def measure(tasks: int, resnet: bool, pairs: int, steps: int) -> str:
    PAIRS.clear()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(config(tasks, resnet, pairs, steps)))
        command_line(["fit", "--config", str(file), "--runs", folder])
    ours, bare = zip(*PAIRS, strict=True)
    added = sorted(a - b for a, b in PAIRS)
    ratio = sorted(a / b for a, b in PAIRS)
    low, high = len(PAIRS) // 4, -1 - len(PAIRS) // 4
    trunk = "ResNet-18, 64 x 64" if resnet else "linear"
    return (
        f"| {trunk} | {tasks} | {statistics.median(ours):.2f} | {statistics.median(bare):.2f} "
        f"| {statistics.median(added):.2f} ({added[low]:.2f} … {added[high]:.2f}) "
        f"| {statistics.median(ratio):.3f} ({ratio[low]:.3f} … {ratio[high]:.3f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--steps", type=int, default=200, help="steps of an epoch with the linear trunk")
    parser.add_argument("--resnet-steps", type=int, default=8, help="with ResNet-18; 0 leaves it out")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rows = [measure(tasks, False, options.pairs, options.steps) for tasks in options.tasks]
    if options.resnet_steps:
        rows += [measure(tasks, True, options.pairs, options.resnet_steps) for tasks in options.tasks]
    print("| trunk | tasks | ours, ms | bare, ms | added, ms: median (quartiles) | ratio: median (quartiles) |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    # The configuration names the classes of this file by its module.
    sys.path.insert(0, str(Path(__file__).parent))
    import measure as this

    this.main()
