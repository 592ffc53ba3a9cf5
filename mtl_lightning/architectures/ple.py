"""Experts of each task beside shared ones, in one level (CGC) or in several (PLE)."""

from collections.abc import Collection, Sequence
from itertools import pairwise

from torch import nn

from mtl_lightning.architectures.base import Architecture, Table
from mtl_lightning.architectures.experts import check_count, check_shared, mix
from mtl_lightning.architectures.gates import Gate, gate_table, pooled
from mtl_lightning.architectures.parts import belong, copies, run, wanted
from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec


class PLE(Architecture):
    """Progressive layered extraction: shared experts and experts of each task, several times in a row.

    Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized Recommendations",
    RecSys 2020. The first stages are one trunk. Behind it the stages are cut into extraction levels, each with shared experts
    and experts of each task: copies of the level's stages. A task's gate mixes the shared experts and its own into what its
    experts and its gate of the next level read; in all levels but the last a shared gate mixes all experts of all tasks into
    what the next level's shared experts and shared gate read. Gates are linear with softmax over the averaged valid cells of
    their level's input, [B, experts], and every stage of a level is mixed by the same weights for the task's pyramid.

    Shared: the trunk, the shared experts, and through the shared gates also the tasks' experts of all levels but the last and
    the gates of all levels but the last two. A task's own: its experts of the last level, which run only if it is asked for,
    and its gates of the last two levels. Cost: the trunk once and the rest shared_experts + tasks * own_experts times, in
    parameters and in FLOPs, beside the gates and the sums.

    Where ours differs: pooled raw pixels or token ids say nothing, so with ``shared: 0`` the gates of the first level are
    learnt vectors of logits without input.

    Args:
        encoder: trunk and first shared expert; the other experts are copies of that.
        tasks: names.
        shared_experts: >= 1.
        own_experts: of each task, >= 1.
        shared: stages of the trunk, 0 to one less than there are.
        levels: the numbers of the stages at which levels end, ascending, the last stage's at the end; null makes each stage
            behind the trunk a level.

    Raises:
        ConfigError: a number out of range, levels that do not ascend to the last stage, or an encoder without stages.
    """

    shards = True

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[str],
        shared_experts: int = 1,
        own_experts: int = 1,
        shared: int = 1,
        levels: list[int] | None = None,
    ) -> None:
        super().__init__()
        check_count("shared_experts", shared_experts)
        check_count("own_experts", own_experts)
        stages = check_shared(type(self).__name__, encoder, shared)
        ends = list(range(shared + 1, len(stages) + 1)) if levels is None else levels
        if not ends or ends[-1] != len(stages) or any(a >= b for a, b in pairwise([shared, *ends])):
            raise ConfigError(
                f"model.architecture.init_args.levels is {levels}, expected ascending numbers of stages from {shared + 1} on "
                f"(shared is {shared}) that end with {len(stages)}, the encoder's last"
            )
        self.tasks, self.shared = list(tasks), shared
        self.levels = list(pairwise([shared, *ends]))
        self.counts = (shared_experts, own_experts)
        own, every = shared_experts + own_experts, shared_experts + own_experts * len(self.tasks)
        channels = [stages[start - 1].spec.channels if start else None for start, _ in self.levels]
        self.common_gates = nn.ModuleList(Gate(width, every) for width in channels[:-1])
        self.gates = nn.ModuleList(nn.ModuleDict({task: Gate(width, own) for task in self.tasks}) for width in channels)
        self.encoder = encoder
        made = copies(nn.ModuleList(stages[shared:]), every, encoder.fresh)
        places = {task: shared_experts + own_experts * number for number, task in enumerate(self.tasks)}
        self.own = nn.ModuleDict({task: nn.ModuleList(made[at : at + own_experts]) for task, at in places.items()})
        self.further = nn.ModuleList(made[1:shared_experts])

    def _experts(self, task: str | None, level: int = 0, whole: bool = False) -> list[list[Stage]]:
        """The stages of a level, or of all, of each expert of a task; None are the shared ones."""
        first, end = (self.shared, len(self.encoder.stages)) if whole else self.levels[level]
        cut = slice(first - self.shared, end - self.shared)
        found = [list(self.encoder.stages)[self.shared :], *self.further] if task is None else self.own[task]
        return [list(expert)[cut] for expert in found]  # type: ignore[index, union-attr]

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        """Each task's mixtures; the trunk's levels come first and are the same for all."""
        asked, last = wanted(tasks, self.tasks), len(self.levels) - 1
        start = self.encoder.start(source)
        trunk = run(list(self.encoder.stages)[: self.shared], start)
        common = trunk[-1] if trunk else start
        read = pooled(common) if trunk else None
        mine, reads = dict.fromkeys(self.tasks, common), dict.fromkeys(self.tasks, read)
        pyramids = {task: list(trunk) for task in asked}
        for level in range(len(self.levels)):
            # Another task's experts matter as long as a shared gate comes behind them, its gates as long as such experts do.
            running, mixing = (self.tasks if level < last else asked), (self.tasks if level < last - 1 else asked)
            shared = [run(expert, common) for expert in self._experts(None, level)]
            own = {task: [run(expert, mine[task]) for expert in self._experts(task, level)] for task in running}
            for task in mixing:
                given = [*shared, *own[task]]
                weights = self.gates[level][task](reads[task])  # type: ignore[index]
                mixed = mix(given if task in asked else [pyramid[-1:] for pyramid in given], weights)
                mine[task] = mixed[-1]
                if task in asked:
                    pyramids[task] += mixed
            if level < last:
                ends = [pyramid[-1:] for pyramid in [*shared, *(one for task in self.tasks for one in own[task])]]
                common = mix(ends, self.common_gates[level](read))[-1]
                read = pooled(common)
                reads = {task: pooled(mine[task]) for task in mixing}
        return pyramids

    def specs(self, task: str) -> list[FeatureSpec]:
        """The encoder's."""
        return self.encoder.specs

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """What a shared gate comes behind belongs to all tasks."""
        owners: dict[nn.Parameter, frozenset[str]] = {}
        last = len(self.levels) - 1
        for level, task in ((level, task) for level in range(last + 1) for task in self.tasks):
            experts = [stage for expert in self._experts(task, level) for stage in expert]
            belong(owners, experts, self.tasks if level < last else [task])
            belong(owners, [self.gates[level][task]], self.tasks if level < last - 1 else [task])  # type: ignore[index]
        belong(owners, [self.common_gates, self.encoder, self.further], self.tasks)
        return owners

    def stages(self) -> list[list[Stage]]:
        """One copy of the trunk's, one of the others for each expert, the shared ones' first."""
        trunk: list[Stage] = list(self.encoder.stages)[: self.shared]  # type: ignore[assignment]
        experts = [expert for task in (None, *self.tasks) for expert in self._experts(task, whole=True)]
        return [*([stage] for stage in trunk), *(list(level) for level in zip(*experts, strict=True))]

    def tables(self) -> dict[str, Table]:
        """``gates``, or ``gates_1``, ``gates_2``, … of several levels: task x expert, the mean weights.

        In all levels but the last there is a row for the shared gate.
        """
        shared, own = self.counts
        columns = [f"shared {number + 1}" for number in range(shared)]
        columns += [f"{task} {number + 1}" for task in self.tasks for number in range(own)]
        places = {"shared gate": list(range(len(columns)))}
        for number, task in enumerate(self.tasks):
            places[task] = [*range(shared), *range(shared + number * own, shared + (number + 1) * own)]
        found = {}
        for level, gates in enumerate(self.gates):
            rows: dict[str, nn.Module] = dict(gates.items())  # type: ignore[operator]
            if level < len(self.common_gates):
                rows["shared gate"] = self.common_gates[level]
            table = gate_table(rows, columns, places)
            if table is not None:
                found["gates" if len(self.levels) == 1 else f"gates_{level + 1}"] = table
        return found
