"""A whole encoder for each task, with units after some stages that mix what the tasks have."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.architectures.base import Architecture, Table
from mtl_lightning.architectures.parts import belong, copies, numbered, staged, wanted
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec


class Mixer(nn.Module):
    """What one task takes of all tasks' features behind a stage."""

    @abstractmethod
    def forward(self, features: Sequence[Features]) -> Features:
        """The task's own features from those of all tasks, in their order and of one shape."""

    @abstractmethod
    def shares(self) -> Tensor:
        """How much it takes of each task: [T]."""


MixerFactory = Callable[[FeatureSpec, int], Mixer]
"""From what a stage gives and a task's position to its mixer."""


class Columns(Architecture):
    """What architectures have in common that give each task an encoder of its own.

    Up to the last unit every trunk feeds every task; the mixers of the last unit and the stages behind it are a task's own. A
    single task has nothing to mix: it gets the plain encoder.

    Args:
        encoder: with stages; the first task's.
        tasks: names.
        fresh: whether copies draw weights of their own.
        stages: behind which of them there is a unit, counted from 1; None is all of them.
        mixer: makes a task's part of a unit; None has no units.

    Raises:
        ConfigError: stages that do not exist, twice the same, or none.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[str],
        fresh: bool,
        stages: Sequence[int] | None = None,
        mixer: MixerFactory | None = None,
    ) -> None:
        super().__init__()
        trunk = staged(type(self).__name__, encoder)
        self.tasks = list(tasks)
        chosen = [level + 1 for level in numbered(type(self).__name__, "stages", stages, encoder)]
        chosen = [] if mixer is None or len(self.tasks) == 1 else chosen
        self.last = max(chosen, default=0)
        self.units = nn.ModuleDict(
            {str(level): nn.ModuleList(mixer(trunk[level - 1].spec, place) for place in range(len(tasks))) for level in chosen}
            if mixer is not None
            else {}
        )
        self.encoders = nn.ModuleList(copies(encoder, len(tasks), fresh))

    def trunks(self) -> list[Encoder]:
        """The encoder of each task."""
        return list(self.encoders)  # type: ignore[arg-type]

    def mixers(self) -> dict[int, list[Mixer]]:
        """By the number of the stage that it is behind, each task's part of a unit."""
        return {int(level): list(mixers) for level, mixers in self.units.items()}  # type: ignore[call-overload]

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        """Every trunk runs up to the last unit, and those of the tasks asked for beyond it."""
        names, trunks, units = wanted(tasks, self.tasks), self.trunks(), self.mixers()
        current = dict.fromkeys(self.tasks, trunks[0].start(source))
        pyramids: dict[str, list[Features]] = {name: [] for name in names}
        for level in range(1, len(trunks[0].stages) + 1):
            running = self.tasks if level <= self.last else names
            stages = {name: trunk.stages[level - 1] for name, trunk in zip(self.tasks, trunks, strict=True)}
            current = {name: stages[name](current[name]) for name in running}
            if level in units:
                features, mixers = list(current.values()), dict(zip(self.tasks, units[level], strict=True))
                current = {name: mixers[name](features) for name in (self.tasks if level < self.last else names)}
            for name in names:
                pyramids[name].append(current[name])
        return pyramids

    def specs(self, task: str) -> list[FeatureSpec]:
        """The encoder's."""
        return self.trunks()[0].specs

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """All tasks up to the last unit; its mixers and what follows are each a task's own."""
        owners: dict[nn.Parameter, frozenset[str]] = {}
        for task, trunk in zip(self.tasks, self.trunks(), strict=True):
            for level, stage in enumerate(trunk.stages, start=1):
                belong(owners, [stage], self.tasks if level <= self.last else [task])
        for level, mixers in self.mixers().items():
            for task, mixer in zip(self.tasks, mixers, strict=True):
                belong(owners, [mixer], self.tasks if level < self.last else [task])
        return owners

    def tables(self) -> dict[str, Table]:
        """By unit, how much each task (row) takes of each task (column)."""
        return {
            f"stage {level}": Table(self.tasks, self.tasks, torch.stack([mixer.shares().detach() for mixer in mixers]))
            for level, mixers in self.mixers().items()
        }


def check_same(architecture: str, same: float) -> None:
    """Raise :class:`ConfigError` for a share of a task's own features outside of 0..1."""
    if not 0 <= same <= 1:
        raise ConfigError(
            f"model.architecture.init_args.same is {same}, expected 0 to 1: the share of its own features that {architecture} "
            "starts each task with"
        )


def first_shares(count: int, place: int, same: float) -> Tensor:
    """Of the task at a position ``same``, of the others the rest in equal parts: [T]."""
    shares = torch.full((count,), (1 - same) / max(1, count - 1))
    shares[place] = same
    return shares
