"""Steps of this framework, taken by its `Training` in a bare loop, and bare passes of the trunk, their bound from below."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import torch
from network import CLASSES, STRIDE, Shape, data, network, now, optimizer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtl_lightning.architectures import HardSharing
from mtl_lightning.batch import Batch
from mtl_lightning.encoders import ImageEncoder, Stage
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.gradients import EngineOptions
from mtl_lightning.heads import Head
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Classification, SemanticSegmentation
from mtl_lightning.tasks.base import Task
from mtl_lightning.training import Surroundings, Training
from mtl_lightning.weighting import TaskInfo, Weighting


class PlainHead(Head):
    """A head of plain torch on the last map."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        return self.body(features[-1].tensor)  # type: ignore[no-any-return]


def build(shape: Shape, device: torch.device) -> tuple[MultiTaskModel, dict[str, Task], Batch]:
    body, heads = network(shape)
    images, classes = data(shape)
    names, tasks, kind = [str(number) for number in range(CLASSES)], {}, Classification
    if shape.head == "heavy":
        kind = SemanticSegmentation  # type: ignore[assignment]
    for number, own in enumerate(heads):
        task = kind(classes=names, head=lambda _specs, _channels, own=own: PlainHead(own))
        task.name = f"t{number}"
        task.learn(classes[number])
        tasks[task.name] = task
    channels = [layer for layer in body if isinstance(layer, nn.Conv2d)][-1].out_channels
    encoder = ImageEncoder([Stage(body, FeatureSpec(channels, STRIDE))], 3, mean=0.0, std=1.0)
    model = MultiTaskModel(tasks, HardSharing(encoder, list(tasks))).to(device)
    labelled = {name: torch.ones(shape.rows, dtype=torch.bool) for name in tasks}
    sizes = torch.full((shape.rows, 2), shape.side)
    targets = dict(zip(tasks, classes, strict=True))
    batch = Batch({"image": images}, targets, labelled, [str(row) for row in range(shape.rows)], sizes).to(device)
    for task in tasks.values():
        task.to(device)
    return model, tasks, batch  # type: ignore[return-value]


def fail(message: object) -> NoReturn:
    raise RuntimeError(f"{message}: a measured step must be a whole one")


class Ours:
    """Training steps with a weighting method.

    Args:
        shape: of the network.
        weighting: the method.
        device: where.
        autocast: forward passes in bfloat16.
        cycle: steps that belong together; timed runs are multiples of it.
        options: of the engine.

    Attributes:
        cpu_time: count the seconds that the process was computing.
    """

    cpu_time = False

    def __init__(
        self,
        shape: Shape,
        weighting: Weighting,
        device: torch.device,
        autocast: bool = False,
        cycle: int = 1,
        options: EngineOptions | None = None,
    ) -> None:
        self.cycle, self.device, self._autocast = cycle, device, autocast
        self.model, tasks, self.batch = build(shape, device)
        weighting.prepare([TaskInfo(name) for name in tasks])
        weighting.to(device)
        around = Surroundings(
            lambda tensor: tensor, 1, 0, fail, list, self.context, lambda: 1e-3, lambda: 1.0, lambda _: self.batch
        )
        self.training = Training(self.model, tasks, weighting, [], options or EngineOptions(), around)
        if self.training.engine is not None:
            self.training.engine.to(device)
        self.optimizer = optimizer([*self.model.parameters(), *weighting.parameters()])
        self.first: list[float] = []

    def context(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._autocast else nullcontext()

    def step(self) -> None:
        self.training.prepare(self.batch)
        with self.context():
            objective = self.training.objective(self.batch)
        if not self.first:
            self.first = self.training.step.losses.values.tolist()
        self.optimizer.zero_grad()
        self.training.backward(objective, scaled=False)
        self.optimizer.step()
        self.training.finish()

    def run(self, steps: int) -> dict[str, float]:
        """Seconds a step."""
        start = now(self.device, self.cpu_time)
        for _ in range(steps):
            self.step()
        return {"": (now(self.device, self.cpu_time) - start) / steps}

    def flops(self) -> tuple[float, float]:
        """Of a forward pass of the trunk and of all heads, in units of 1e9."""
        with torch.no_grad():
            with FlopCounterMode(display=False) as trunk:
                features = self.model.features(self.batch.inputs)
            with FlopCounterMode(display=False) as heads:
                self.model.predict(features, self.batch.inputs)
        return trunk.get_total_flops() / 1e9, heads.get_total_flops() / 1e9


class Bare:
    """The trunk alone: seconds of a forward pass, F, and of a backward pass to its parameters, B."""

    cycle = 1
    cpu_time = False

    def __init__(self, shape: Shape, device: torch.device, autocast: bool = False) -> None:
        self.device, self._autocast = device, autocast
        self.model, _, self.batch = build(shape, device)
        self.parameters = list(self.model.architecture.parameters())
        self._slope: Tensor | None = None

    def run(self, steps: int) -> dict[str, float]:
        spent = {"F": 0.0, "B": 0.0}
        for _ in range(steps):
            start = now(self.device, self.cpu_time)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
                features = self.model.features(self.batch.inputs)["t0"][-1].tensor
            middle = now(self.device, self.cpu_time)
            spent["F"] += middle - start
            if self._slope is None:
                self._slope = torch.randn_like(features)
            start = now(self.device, self.cpu_time)
            torch.autograd.grad(features, self.parameters, self._slope)
            spent["B"] += now(self.device, self.cpu_time) - start
        return {name: seconds / steps for name, seconds in spent.items()}
