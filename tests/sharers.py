"""Small architectures of each kind, for what looks at architectures: a split, columns with stitches, a mixture, attention."""

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mtl_lightning.architectures import Architecture, HardSharing, Table
from mtl_lightning.architectures.parts import belong, blend, copies, staged, wanted
from mtl_lightning.architectures.seen import Seen
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.features import Features, FeatureSpec, pool
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Regression


class Separate(Architecture):
    """An encoder a task."""

    def __init__(self, encoder: Encoder, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.encoders = nn.ModuleDict(zip(tasks, copies(encoder, len(tasks), encoder.fresh), strict=True))

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        return {task: self.encoders[task](source) for task in wanted(tasks, self.tasks)}

    def specs(self, task: str) -> list[FeatureSpec]:
        return cast(Encoder, self.encoders[task]).specs

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        owners: dict[nn.Parameter, frozenset[str]] = {}
        for task in self.tasks:
            belong(owners, [self.encoders[task]], [task])
        return owners


class Stitched(Separate):
    """Cross-stitch: after each stage the columns exchange."""

    def __init__(self, encoder: Encoder, tasks: Sequence[str]) -> None:
        super().__init__(encoder, tasks)
        count, depth = len(self.tasks), len(staged("Stitched", encoder))
        start = 0.9 * torch.eye(count) + 0.1 / max(1, count - 1) * (1 - torch.eye(count))
        self.stitches = nn.ParameterList(nn.Parameter(start.clone()) for _ in range(depth))

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        encoders = [cast(Encoder, self.encoders[task]) for task in self.tasks]
        now = [encoder.start(source) for encoder in encoders]
        pyramids: list[list[Features]] = [[] for _ in now]
        for level, stitch in enumerate(self.stitches):
            given = [cast(Stage, encoder.stages[level])(features) for encoder, features in zip(encoders, now, strict=True)]
            now = [blend(given, row) for row in stitch]
            for pyramid, features in zip(pyramids, now, strict=True):
                pyramid.append(features)
        return {task: pyramids[self.tasks.index(task)] for task in wanted(tasks, self.tasks)}

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        return dict.fromkeys(self.parameters(), frozenset(self.tasks))

    def tables(self) -> dict[str, Table]:
        return {
            f"stitch_{level}": Table(self.tasks, self.tasks, stitch.detach())
            for level, stitch in enumerate(self.stitches, start=1)
        }


class Mixed(Architecture):
    """MMoE of whole encoders, with gates that read the picture's mean."""

    def __init__(self, encoder: Encoder, tasks: Sequence[str], experts: int = 3) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.experts = nn.ModuleList(copies(encoder, experts, encoder.fresh))
        self.gates = nn.ModuleDict({task: nn.Linear(3, experts) for task in tasks})
        self.seen = nn.ModuleDict({task: Seen() for task in tasks})

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        given = [expert(source) for expert in self.experts]
        found = {}
        for task in wanted(tasks, self.tasks):
            weights = self.gates[task](pool(source)).softmax(-1)
            cast(Seen, self.seen[task]).add(weights)
            found[task] = [blend(level, weights) for level in zip(*given, strict=True)]
        return found

    def specs(self, task: str) -> list[FeatureSpec]:
        return cast(Encoder, self.experts[0]).specs

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        owners = dict.fromkeys(self.experts.parameters(), frozenset(self.tasks))
        for task in self.tasks:
            belong(owners, [self.gates[task]], [task])
        return owners

    def tables(self) -> dict[str, Table]:
        means = [cast(Seen, self.seen[task]).mean for task in self.tasks]
        if any(mean is None for mean in means):
            return {}
        columns = [f"expert {number + 1}" for number in range(len(self.experts))]
        return {"gates": Table(self.tasks, columns, torch.stack(cast(list[Tensor], means)))}


class Looking(Mixed):
    """Gates, and attention that is each expert's mean."""

    def attention(self, source: Features) -> dict[str, list[Tensor]]:
        maps = [expert(source)[0].tensor.mean(1, keepdim=True).sigmoid() for expert in self.experts]
        return {task: [maps[position % len(maps)]] for position, task in enumerate(self.tasks)}


class Attending(HardSharing):
    """One trunk, of whose maps each task looks at some places."""

    def __init__(self, encoder: Encoder, tasks: Sequence[str]) -> None:
        super().__init__(encoder, tasks)
        self.common = False
        self.attend = nn.ModuleDict(
            {task: nn.ModuleList(nn.Conv2d(spec.channels, 1, 1) for spec in encoder.specs) for task in tasks}
        )

    def _maps(self, task: str, pyramid: Sequence[Features]) -> list[Tensor]:
        layers = cast(nn.ModuleList, self.attend[task])
        return [layer(features.tensor).sigmoid() for layer, features in zip(layers, pyramid, strict=True)]

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        pyramid = self.encoder(source)
        return {
            task: [
                features.like(features.tensor * mask) for features, mask in zip(pyramid, self._maps(task, pyramid), strict=True)
            ]
            for task in wanted(tasks, self.tasks)
        }

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        owners = super().owners()
        for task in self.tasks:
            owners |= dict.fromkeys(self.attend[task].parameters(), frozenset({task}))
        return owners

    def attention(self, source: Features) -> dict[str, list[Tensor]]:
        pyramid = self.encoder(source)
        return {task: self._maps(task, pyramid) for task in self.tasks}


class Parting(Separate):
    """A first stage for all, a second for each half of the tasks, the rest for each task."""

    def __init__(self, encoder: Encoder, tasks: Sequence[str]) -> None:
        super().__init__(encoder, tasks)
        half = len(self.tasks) // 2
        for position, task in enumerate(self.tasks):
            stages = cast(Encoder, self.encoders[task]).stages
            stages[0] = cast(Encoder, self.encoders[self.tasks[0]]).stages[0]
            # Every other task: neighbours in the diagram must be made.
            stages[1] = cast(Encoder, self.encoders[self.tasks[position % 2 if half else 0]]).stages[1]

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        owners: dict[nn.Parameter, frozenset[str]] = {}
        for task in self.tasks:
            belong(owners, [self.encoders[task]], [task])
        return owners

    def stages(self) -> list[list[Stage]]:
        return [list(dict.fromkeys(copies)) for copies in super().stages()]


def network(kind: type[Architecture], tasks: int, widths: Sequence[int] = (4, 6)) -> MultiTaskModel:
    """With one number a task to predict."""
    torch.manual_seed(0)
    names = [f"task_{number + 1}" for number in range(tasks)]
    kinds = {name: Regression(["number"], mean=[0.0], std=[1.0]) for name in names}
    return MultiTaskModel(kinds, kind(SmallCNN(list(widths)), names))  # type: ignore[call-arg]


__all__ = ["Attending", "Looking", "Mixed", "Parting", "Separate", "Stitched", "network"]
