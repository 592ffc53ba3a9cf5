"""Experts: copies of an encoder's later stages behind a common trunk, and mixtures of what they give."""

from collections.abc import Callable, Collection, Sequence

from torch import Tensor, nn

from mtl_lightning.architectures.base import Architecture, Table
from mtl_lightning.architectures.gates import gate_table, pooled
from mtl_lightning.architectures.parts import belong, blend, copies, run, staged, wanted
from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec


def check_count(key: str, value: int, most: int | None = None, because: str = "") -> None:
    """Raise :class:`ConfigError` for a number of experts below 1 or above what there is."""
    if value < 1 or (most is not None and value > most):
        limit = "1 or more" if most is None else f"1 to {most}"
        raise ConfigError(f"model.architecture.init_args.{key} is {value}, expected {limit}{because}")


def check_shared(architecture: str, encoder: Encoder, shared: int) -> list[Stage]:
    """The encoder's stages; raises :class:`ConfigError` where sharing the first ones leaves none for experts."""
    stages = staged(architecture, encoder)
    if not 0 <= shared < len(stages):
        raise ConfigError(
            f"model.architecture.init_args.shared is {shared}, expected 0 to {len(stages) - 1}: the encoder has {len(stages)} "
            f"stage{'s' if len(stages) > 1 else ''}, and at least one must be left for {architecture}'s experts"
        )
    return stages


def mix(given: Sequence[Sequence[Features]], weights: Tensor) -> list[Features]:
    """The weighted sum of several experts' pyramids, level by level.

    Args:
        given: each expert's pyramid.
        weights: [B, experts], or [experts] for all rows.
    """
    return [blend(level, weights) for level in zip(*given, strict=True)]


class Mixture(Architecture):
    """Experts that all tasks use behind a common trunk, and a gate for each task that weighs their pyramids.

    Args:
        encoder: its first stages become the trunk, the rest the first expert; the other experts are copies of that.
        tasks: names.
        experts: how many.
        shared: stages of the trunk.
        gate: builds a task's gate from the channels of what it reads (None where nothing is shared) and the number of experts;
            it maps [B, channels] to [B, experts] or [experts].

    Raises:
        ConfigError: no expert, or a trunk that leaves no stage for experts.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[str],
        experts: int,
        shared: int,
        gate: Callable[[int | None, int], nn.Module],
    ) -> None:
        super().__init__()
        check_count("experts", experts)
        stages = check_shared(type(self).__name__, encoder, shared)
        self.tasks, self.shared, self.count = list(tasks), shared, experts
        channels = stages[shared - 1].spec.channels if shared else None
        self.gates = nn.ModuleDict({task: gate(channels, experts) for task in self.tasks})
        self.encoder = encoder
        self.further = nn.ModuleList(copies(nn.ModuleList(stages[shared:]), experts, encoder.fresh)[1:])

    def _experts(self) -> list[list[Stage]]:
        return [list(self.encoder.stages)[self.shared :], *(list(expert) for expert in self.further)]  # type: ignore[call-overload, list-item]

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        """Each task's mixture of all experts, which run once; the trunk's levels come first and are the same for all."""
        start = self.encoder.start(source)
        trunk = run(list(self.encoder.stages)[: self.shared], start)
        given = [run(expert, trunk[-1] if trunk else start) for expert in self._experts()]
        vector = pooled(trunk[-1]) if trunk else None
        return {task: [*trunk, *mix(given, self.gates[task](vector))] for task in wanted(tasks, self.tasks)}

    def specs(self, task: str) -> list[FeatureSpec]:
        """The encoder's."""
        return self.encoder.specs

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """Trunk and experts belong to all tasks, a gate to its own."""
        owners: dict[nn.Parameter, frozenset[str]] = {}
        for task, gate in self.gates.items():
            belong(owners, [gate], [task])
        belong(owners, [self.encoder, self.further], self.tasks)
        return owners

    def stages(self) -> list[list[Stage]]:
        """One copy of the trunk's, one of the others for each expert."""
        trunk: list[Stage] = list(self.encoder.stages)[: self.shared]  # type: ignore[assignment]
        return [*([stage] for stage in trunk), *(list(level) for level in zip(*self._experts(), strict=True))]

    def tables(self) -> dict[str, Table]:
        """``gates``: task x expert, the mean weights."""
        every = list(range(self.count))
        columns = [f"expert {number + 1}" for number in every]
        table = gate_table(dict(self.gates.items()), columns, dict.fromkeys(self.tasks, every))
        return {} if table is None else {"gates": table}
