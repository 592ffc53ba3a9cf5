"""Tasks that share the first stages and part, all at once or in groups."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from mtl_lightning.architectures.branched import Branched, Route
from mtl_lightning.architectures.parts import check_level, staged, wanted
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features

KEY = "model.architecture.init_args"

Chain = list[tuple[str, int]]
"""The groups around a task, the outermost first, and how many stages each shares."""


@dataclass
class Group:
    """Tasks that go on together where others part.

    Attributes:
        tasks: those that part from all others behind the stages that the group shares.
        shared: how many stages the whole group shares, counted from the encoder's first; null is all of them.
        groups: those within it that share further.
    """

    tasks: list[str] = field(default_factory=list)
    shared: int | None = None
    groups: list["Group"] = field(default_factory=list)


class SplitAt(Branched):
    """All tasks share the first stages of the encoder, then each has a copy of the rest; groups may share further, in a tree.

    The trees of Vandenhende et al., "Branched Multi-Task Networks: Deciding What Layers To Share", BMVC 2020, drawn by hand.
    ``shared: 0`` is a network for each task in one run, ``shared`` of all stages is hard sharing. For five tasks on an encoder
    with five stages::

        shared: 1
        groups:
          - {tasks: [depth, normals], shared: 4}
          - shared: 2
            tasks: [count]
            groups:
              - {tasks: [kind, color]}

    Here kind and color share everything; count shares two stages with them, and one with depth and normals.

    The parameters of a copy belong to the tasks that go through it. Each copy of a stage runs once per input: with T tasks and
    nothing shared, parameters and FLOPs are T times the encoder's. Copies draw weights of their own where the encoder's are
    random; pretrained ones start equal.

    Args:
        encoder: with stages.
        tasks: names.
        shared: how many stages all tasks share, 0 to all.
        groups: tasks that share further. Every task is in one of them; those that ``model.only`` leaves out of a run may stay.
            null parts all tasks behind the shared stages.

    Raises:
        ConfigError: more shared stages than there are, a group that parts before what it is in, an empty one, or a task in no
            group, in two, or that does not exist.
    """

    shards = True

    def __init__(self, encoder: Encoder, tasks: Sequence[str], shared: int, groups: list[Group] | None = None) -> None:
        stages = staged("SplitAt", encoder)
        check_level("SplitAt", "shared", shared, stages)
        named: dict[str, Chain] = {task: [("", shared)] for task in tasks}
        if groups is not None:
            named = _chains(groups, "groups", [("", shared)], len(stages))
            if lost := [task for task in tasks if task not in named]:
                raise ConfigError(f"{KEY}.groups: task {', '.join(lost)} is in no group; list every task in one of them")
        columns = [_places({task: named[task] for task in tasks}, depth) for depth in range(len(stages))]
        super().__init__(encoder, tasks, [max(column.values()) + 1 for column in columns])
        self.routes: dict[str, Route] = {task: tuple(column[task] for column in columns) for task in tasks}
        self.common = len(set(self.routes.values())) == 1
        self._named = list(named)

    def check_tasks(self, configured: Collection[str]) -> None:
        """Refuse groups of tasks that are not configured."""
        if unknown := [task for task in self._named if task not in configured]:
            raise ConfigError(f"{KEY}.groups names {', '.join(unknown)}; the configured tasks are {', '.join(configured)}")

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        """Each task's own way; tasks that share all stages get the very same pyramid."""
        return self.along(source, {task: self.routes[task] for task in wanted(tasks, self.tasks)})

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """Every copy of a stage belongs to the tasks that go through it."""
        return self.owned(self.routes)


def _chains(groups: Sequence[Group], key: str, around: Chain, depth: int) -> dict[str, Chain]:
    """The groups around each task that some groups name.

    Args:
        groups: side by side.
        key: where in the configuration.
        around: what they are in.
        depth: how many stages there are.
    """
    found: dict[str, Chain] = {}
    where: dict[str, str] = {}
    lowest = around[-1][1]
    for place, group in enumerate(groups):
        name = f"{key}[{place}]"
        shared = depth if group.shared is None else group.shared
        if not lowest <= shared <= depth:
            raise ConfigError(
                f"{KEY}.{name}.shared is {shared}, expected {lowest} to {depth}, or null for all: the encoder has {depth} "
                f"stages, and what the group is in shares {lowest} of them"
            )
        chain = [*around, (name, shared)]
        within = _chains(group.groups, f"{name}.groups", chain, depth)
        inside = [*group.tasks, *within]
        if not inside:
            raise ConfigError(f"{KEY}.{name} has neither tasks nor groups; name its tasks, or take it out")
        for task in inside:
            if task in where or inside.count(task) > 1:
                raise ConfigError(f"{KEY}.{name}: task {task} is named twice ({where.get(task, name)}); a task is in one group")
        where |= dict.fromkeys(inside, name)
        found |= dict.fromkeys(group.tasks, chain) | within
    return found


def _places(chains: Mapping[str, Chain], depth: int) -> dict[str, int]:
    """Which copy of a stage each task takes: that of the outermost group that still shares it, or else one of its own."""
    keys = {}
    for task, chain in chains.items():
        sharing = [name for name, shared in chain if shared > depth]
        keys[task] = (False, sharing[0]) if sharing else (True, task)
    places = {key: place for place, key in enumerate(dict.fromkeys(keys.values()))}
    return {task: places[key] for task, key in keys.items()}
