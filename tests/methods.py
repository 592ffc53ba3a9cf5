"""Every weighting method once, and a network without batch norm and dropout to train with it, in plain torch."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mtl_lightning import weighting
from mtl_lightning.architectures import HardSharing
from mtl_lightning.batch import Batch, Collate
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.gradients import EngineOptions
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Classification, Regression, SemanticSegmentation
from mtl_lightning.tasks.base import Task
from mtl_lightning.training import Surroundings, Training
from mtl_lightning.weighting import UW, PCGrad, TaskInfo, Weighting

ROWS = 8
BASES = (Weighting, weighting.LossWeighting, weighting.GradientWeighting, weighting.TorchJD)
NAMES = ("color", "level", "mask", "shade")
SPECIAL: dict[str, Callable[[], Weighting]] = {
    "Combined": lambda: weighting.Combined(UW(), PCGrad()),
    "NTKMTL": lambda: weighting.NTKMTL(blocks=2),
    "GradNorm": lambda: weighting.GradNorm(over="shared"),
    "AutoLambda": lambda: weighting.AutoLambda(lr=0.01),
}


def methods() -> list[str]:
    """Names of all methods that need nothing else installed."""
    found = []
    for name in weighting.__all__:
        kind = getattr(weighting, name)
        if inspect.isclass(kind) and issubclass(kind, Weighting) and kind not in BASES:
            found.append(name)
    return found


def make(name: str) -> Weighting:
    """One with its defaults."""
    method: Weighting = SPECIAL.get(name, getattr(weighting, name))()
    return method


def at_features(name: str) -> bool:
    """Whether its gradients can be taken at features."""
    part = make(name).from_gradients
    return part is not None and not part.needs_rows


def network(dtype: torch.dtype = torch.float64) -> tuple[MultiTaskModel, dict[str, Task]]:
    """Four tasks."""
    torch.manual_seed(0)
    tasks: dict[str, Task] = {
        "color": Classification(classes=["a", "b", "c"]),
        "level": Regression(names=["one", "two"]),
        "mask": SemanticSegmentation(classes=["no", "yes"]),
        "shade": Classification(classes=["d", "e"]),
    }
    labels = {"color": torch.tensor(1), "level": torch.rand(2), "mask": torch.ones(4, 4).long(), "shade": torch.tensor(0)}
    for name, task in tasks.items():
        task.name = name
        task.learn([labels[name], labels[name] * 0])
    model = MultiTaskModel(tasks, HardSharing(SmallCNN([4, 6], norm=False), list(tasks))).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, assignment, misc]
    return model, tasks


def batch_of(tasks: dict[str, Task], seed: int, dtype: torch.dtype = torch.float64) -> Batch:
    """Eight rows with uneven labels; every fourth seed leaves a task out."""
    generator = torch.Generator().manual_seed(seed)
    shares = {"color": 0.8, "level": 0.4, "mask": 0.3, "shade": 0.0 if seed % 4 == 1 else 0.5}
    samples = []
    for row in range(ROWS):
        sample: dict[str, Any] = {"id": str(row), "image": torch.rand(3, 8, 8, generator=generator)}
        made = {
            "color": torch.randint(0, 3, (), generator=generator),
            "level": torch.rand(2, generator=generator),
            "mask": torch.randint(0, 2, (8, 8), generator=generator),
            "shade": torch.randint(0, 2, (), generator=generator),
        }
        shown = torch.rand(4, generator=generator).tolist()
        samples.append(sample | {task: made[task] for task, draw in zip(NAMES, shown, strict=True) if draw < shares[task]})
    batch = Collate({name: task.target for name, task in tasks.items()})(samples)
    batch.inputs["image"] = batch.inputs["image"].to(dtype)
    return batch


def part_of(batch: Batch, rank: int, world: int) -> Batch:
    """The rows of one process; processes take turns."""

    def cut(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value[rank::world] for name, value in values.items()}

    return Batch(cut(batch.inputs), cut(batch.targets), cut(batch.labelled), batch.ids[rank::world], batch.sizes[rank::world])


class Run:
    """A short training with plain SGD.

    Args:
        name: of the method.
        rank, world: this process, and how many.
        reduce: sums over them.
        dtype: of the network.
        device: where it is.
        options: of the engine.
    """

    def __init__(
        self,
        name: str,
        rank: int = 0,
        world: int = 1,
        reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        self.model, self.tasks = network(dtype)
        self.model.to(device)
        self.device = device
        self.method, self.dtype, self.rank, self.world = make(name).to(dtype), dtype, rank, world
        self.method.prepare([TaskInfo(task, labelled=10 + len(task)) for task in NAMES])
        self.method.to(dtype).to(device)
        self.said: list[str] = []
        self.step, self.weights = 0, [dict[int, float]()]
        around = Surroundings(reduce, world, rank, self.said.append, list, nullcontext, lambda: 0.05, lambda: 1.0, self._further)
        self.training = Training(self.model, self.tasks, self.method, [], EngineOptions(**options), around)
        if self.training.engine is not None:
            self.training.engine.to(dtype).to(device)
        self.optimizer = torch.optim.SGD([*self.model.parameters(), *self.method.parameters()], lr=0.05)

    def _batch(self, seed: int) -> Batch:
        return part_of(batch_of(self.tasks, seed, self.dtype), self.rank, self.world).to(self.device)

    def _further(self, number: int) -> Batch:
        return self._batch(1000 * (number + 1) + self.step)

    def go(self, steps: int) -> "Run":
        """Take steps."""
        for _ in range(steps):
            batch = self._batch(self.step)
            self.optimizer.zero_grad()
            self.training.prepare(batch)
            loss = self.training.objective(batch)
            taken = self.training.backward(loss, False)
            if not self.training.weighs_gradients and self.world > 1:
                for parameter in [*self.model.parameters(), *self.method.parameters()]:
                    if parameter.grad is not None:
                        parameter.grad = self.training.around.reduce(parameter.grad) / self.world
            self.weights.append(taken.weights)
            self.optimizer.step()
            self.training.finish()
            self.step += 1
            if self.step % 3 == 0:
                losses = torch.tensor([1.0, 0.7, 0.9, 0.5], dtype=self.dtype, device=self.device) / self.step
                self.method.epoch_end(losses, torch.ones(4, dtype=torch.bool, device=self.device))
        return self

    def state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint would hold."""
        found = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        found |= {f"weighting.{key}": value for key, value in self.method.state_dict().items()}
        if self.training.engine is not None:
            found |= {f"engine.{key}": value for key, value in self.training.engine.state_dict().items()}
        return {key: value.clone() for key, value in found.items() if isinstance(value, Tensor)}
