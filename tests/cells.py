"""Architecture x encoder x weighting: networks without batch norm's batches, dropout and stochastic depth, in plain torch."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtl_lightning import architectures, encoders, weighting
from mtl_lightning.architectures import Architecture, Group
from mtl_lightning.batch import Batch, Collate
from mtl_lightning.encoders import Encoder
from mtl_lightning.gradients import EngineOptions
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.objective import Losses
from mtl_lightning.tasks import Classification, Regression, SemanticSegmentation
from mtl_lightning.tasks.base import Task
from mtl_lightning.training import Step, Surroundings, Training
from mtl_lightning.weighting import TaskInfo, Weighting
from tests.methods import part_of

ROWS = 6
SIDE = 16
WORDS = 20

Build = Callable[[Encoder, list[str]], Architecture]

GROUPS = [Group(["a", "b"], 2), Group(["c"], 1)]
ARCHITECTURES: dict[str, Build] = {
    "HardSharing": architectures.HardSharing,
    "SplitAt(0)": partial(architectures.SplitAt, shared=0),
    "SplitAt(1)": partial(architectures.SplitAt, shared=1, groups=GROUPS),
    "SplitAt(all)": lambda encoder, tasks: architectures.SplitAt(encoder, tasks, shared=len(encoder.stages)),
    "CrossStitch": architectures.CrossStitch,
    "NDDR": architectures.NDDR,
    "SoftSharing": architectures.SoftSharing,
    "LTB": architectures.LTB,
    "MMoE": partial(architectures.MMoE, experts=2),
    "CGC": architectures.CGC,
    "PLE": architectures.PLE,
    "DSelectK": partial(architectures.DSelectK, experts=3, selected=2),
    "MTAN": architectures.MTAN,
    "TaskConditioned": partial(architectures.TaskConditioned, film=[2], concatenate=True),
    "TaskAdapters": architectures.TaskAdapters,
    "TaskAdapters(in series)": partial(architectures.TaskAdapters, feed_back=True),
    "LoRA": partial(architectures.LoRA, rank=2),
}
"""By what they are called here; each with an encoder of two stages or more and tasks of the names a, b, c."""

ENCODERS: dict[str, Callable[[], Encoder]] = {
    "SmallCNN": lambda: encoders.SmallCNN([4, 6, 8], norm=False),
    "ResNet": lambda: encoders.ResNet("resnet18", stages=2),
    "ConvNeXt": lambda: shallow(encoders.ConvNeXt("convnext_tiny", stages=2)),
    "TextGRU": lambda: encoders.TextGRU(vocabulary=WORDS, width=6, hidden=4, layers=2, dropout=0.0),
}


def shallow(encoder: Encoder) -> Encoder:
    """One block of each group: for time."""
    for stage in encoder.stages:
        for part in stage.body.children():  # type: ignore[union-attr]
            if isinstance(part, nn.Sequential) and type(part[0]).__name__ == "CNBlock":
                del part[1:]
    return encoder


WEIGHTINGS: dict[str, tuple[Callable[[], Weighting], dict[str, Any]]] = {
    "Equal": (weighting.Equal, {}),
    "UW": (weighting.UW, {}),
    "PCGrad": (weighting.PCGrad, {}),
    "NashMTL": (weighting.NashMTL, {}),
    "MGDA at features": (weighting.MGDA, {"gradients": "features"}),
}
ALONE = {"SplitAt(0)", "SoftSharing"}
"""Architectures in which no task's loss has a gradient by another's parameters."""
COMMON = {"HardSharing", "SplitAt(all)"}
"""Those whose tasks all read the same features."""


class Cell(NamedTuple):
    """One combination, by names."""

    architecture: str
    encoder: str
    weighting: str

    @property
    def refused(self) -> str:
        """What the refusal says; empty where the combination makes sense."""
        if (self.architecture, self.encoder) == ("LoRA", "TextGRU"):
            return "no linear layer"
        if self.weighting in ("Equal", "UW"):
            return ""
        if self.architecture in ALONE:
            return "shares none"
        features = WEIGHTINGS[self.weighting][1].get("gradients") == "features"
        return "features of its own" if features and self.architecture not in COMMON else ""


def every_cell() -> list[Cell]:
    """All combinations."""
    return [Cell(*names) for names in product(ARCHITECTURES, ENCODERS, WEIGHTINGS)]


def pairwise() -> list[Cell]:
    """Few combinations in which every two of the three dimensions meet in all ways: the next is always the one with most."""
    left = every_cell()
    missing = {pair for cell in left for pair in pairs_of(cell)}
    chosen: list[Cell] = []
    while missing:
        best = max(left, key=lambda cell: len(missing & set(pairs_of(cell))))
        chosen.append(best)
        missing -= set(pairs_of(best))
    return chosen


def pairs_of(cell: Cell) -> Iterator[tuple[int, str, int, str]]:
    """Each two of a combination's names with their dimensions."""
    for first in range(3):
        for second in range(first + 1, 3):
            yield first, cell[first], second, cell[second]


@cache
def encoder_of(name: str) -> Encoder:
    """Built once: torchvision draws the weights of the whole network."""
    torch.manual_seed(0)
    return ENCODERS[name]()


def network(cell: Cell) -> tuple[MultiTaskModel, dict[str, Task]]:
    """Three tasks in float64; with pictures one of them is dense."""
    encoder = copy.deepcopy(encoder_of(cell.encoder))
    torch.manual_seed(0)
    text = is_text(cell)
    tasks: dict[str, Task] = {
        "a": Classification(classes=["r", "s", "t"]),
        "b": Regression(names=["one", "two"]),
        "c": Classification(classes=["u", "v"]) if text else SemanticSegmentation(classes=["no", "yes"], head=small_head),
    }
    labels = {"a": torch.tensor(1), "b": torch.rand(2), "c": torch.tensor(0) if text else torch.ones(4, 4).long()}
    for name, task in tasks.items():
        task.name = name
        task.learn([labels[name], labels[name] * 0])
    model = MultiTaskModel(tasks, ARCHITECTURES[cell.architecture](encoder, list(tasks))).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]
        if type(module).__name__ == "StochasticDepth":
            module.p = 0.0  # type: ignore[assignment]
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, assignment, misc]
    return model, tasks


def small_head(specs: Any, channels: int) -> Any:
    """A dense head that reads the last map alone, as plain transformers want it."""
    from mtl_lightning.heads import FCN

    return FCN(specs, channels, norm="none", dropout=0.0)


def is_text(cell: Cell) -> bool:
    """Whether the encoder reads token ids."""
    return cell.encoder.startswith("Text")


def batch_of(cell: Cell, tasks: dict[str, Task], seed: int) -> Batch:
    """Six rows with uneven labels; every third batch leaves a task out."""
    generator = torch.Generator().manual_seed(seed)
    shares = {"a": 0.8, "b": 0.5, "c": 0.0 if seed % 3 == 2 else 0.6}
    samples = []
    for row in range(ROWS):
        sample: dict[str, Any] = {"id": str(row)}
        if is_text(cell):
            sample["text"] = torch.randint(2, WORDS, (3 + row % 4,), generator=generator)
        else:
            sample["image"] = torch.rand(3, SIDE, SIDE, generator=generator)
        made = {
            "a": torch.randint(0, 3, (), generator=generator),
            "b": torch.rand(2, generator=generator),
            "c": torch.randint(0, 2, () if is_text(cell) else (SIDE, SIDE), generator=generator),
        }
        shown = torch.rand(3, generator=generator).tolist()
        samples.append(sample | {task: made[task] for task, draw in zip("abc", shown, strict=True) if draw < shares[task]})
    batch = Collate({name: task.target for name, task in tasks.items()}, ["text" if is_text(cell) else "image"])(samples)
    batch.inputs = {name: part.double() if part.is_floating_point() else part for name, part in batch.inputs.items()}
    return batch


class Trial:
    """A network in training with plain SGD.

    Args:
        cell: which.
        rank, world: this process, and how many.
        reduce: sums over them.
    """

    def __init__(self, cell: Cell, rank: int = 0, world: int = 1, reduce: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        self.cell, self.rank, self.world, self.steps = cell, rank, world, 0
        self.model, self.tasks = network(cell)
        build, options = WEIGHTINGS[cell.weighting]
        self.method = build().double()
        self.method.prepare([TaskInfo(task, labelled=10) for task in self.tasks])
        around = Surroundings(
            reduce,
            world,
            rank,
            lambda said: None,
            list,
            nullcontext,
            lambda: 0.05,
            lambda: 1.0,
            lambda number: self.batch(number),
        )
        self.training = Training(self.model, self.tasks, self.method.double(), [], EngineOptions(**options), around)
        if self.training.engine is not None:
            self.training.engine.double()
        self.optimizer = torch.optim.SGD([*self.model.parameters(), *self.method.parameters()], lr=0.05)

    def batch(self, seed: int) -> Batch:
        """This process's part of a batch."""
        return part_of(batch_of(self.cell, self.tasks, seed), self.rank, self.world)

    def backward(self, seed: int) -> Step:
        """Forward and backward, without the optimizer's step."""
        self.optimizer.zero_grad()
        self.model.architecture.set_epoch(0)
        batch = self.batch(seed)
        self.training.prepare(batch)
        step = self.training.backward(self.training.objective(batch), False)
        if not self.training.weighs_gradients and self.world > 1:
            for parameter in [*self.model.parameters(), *self.method.parameters()]:
                if parameter.grad is not None:
                    parameter.grad = self.training.around.reduce(parameter.grad) / self.world
        return step

    def go(self, steps: int) -> "Trial":
        """Take steps."""
        for _ in range(steps):
            self.backward(self.steps)
            self.optimizer.step()
            self.training.finish()
            self.steps += 1
        return self

    def losses(self, seed: int) -> Losses:
        """Those of a batch, with a graph of their own."""
        batch = self.batch(seed)
        return self.training.losses(self.model(batch.inputs, batch.padding), batch)

    def state(self) -> dict[str, Tensor]:
        """The network's tensors."""
        return {key: value.clone() for key, value in self.model.state_dict().items() if isinstance(value, Tensor)}
