"""Where each parameter of a network stands in its diagram: lanes of tasks, columns of stages and of what lies between."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mtl_lightning.analysis.flops import sources, undisturbed
from mtl_lightning.analysis.lanes import LANES, Users, fold
from mtl_lightning.encoders.base import Stage
from mtl_lightning.model import MultiTaskModel


@dataclass(frozen=True)
class Box:
    """Copies of one thing with the same users.

    Attributes:
        lanes: positions of the lanes whose tasks use it.
        tasks: whose losses have a gradient by it; for what is frozen for good, who uses it; for what nobody uses, all.
        sizes: parameters of each copy.
        frozen: whether it does not learn.
    """

    lanes: tuple[int, ...]
    tasks: Users
    sizes: tuple[int, ...]
    frozen: bool = False


@dataclass(frozen=True)
class Column:
    """Boxes below each other, or side by side where they share lanes.

    Attributes:
        title: shown above.
        note: a second line.
        added: whether the architecture adds it to the encoder.
        boxes: the largest first.
    """

    title: str
    note: str
    added: bool
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Layout:
    """What a diagram shows.

    Attributes:
        tasks: all, in their usual order.
        lanes: the tasks of each lane; only some lanes have several.
        inputs: what each input is, and the lanes that read it.
        columns: from left to right, without heads.
        heads: parameters of each head, by lane.
    """

    tasks: list[str]
    lanes: list[tuple[str, ...]]
    inputs: list[tuple[str, tuple[int, ...]]]
    columns: list[Column]
    heads: list[tuple[int, ...]]


@dataclass(frozen=True)
class _Piece:
    """Parameters with the same users in one place: level (0 is before the first stage), kind (None is a stage itself)."""

    level: int
    kind: str | None
    users: Users
    size: int
    frozen: bool = False


def lay_out(model: MultiTaskModel, inputs: Mapping[str, Tensor], still: Collection[nn.Parameter] = ()) -> Layout:
    """The diagram of a network.

    Args:
        model: left as it is.
        inputs: one row; a forward pass tells between which stages things are.
        still: parameters that the configuration keeps from learning.
    """
    tasks, stages = list(model.heads), model.architecture.stages()
    pieces = [*_stages(model, stages, set(still)), *_added(model, stages, inputs)]
    lanes = fold(tasks, [piece.users for piece in pieces])
    of = {task: lane for lane, names in enumerate(lanes) for task in names}

    def column(title: str, note: str, kind: str | None, level: int) -> Column | None:
        found: dict[tuple[tuple[int, ...], Users | None, bool], list[_Piece]] = {}
        for piece in pieces:
            if (piece.level, piece.kind) == (level, kind):
                where = tuple(sorted({of[task] for task in piece.users}))
                # In a lane of several tasks, what belongs to single ones is one box.
                folded = len(where) == 1 and len(lanes[where[0]]) > 1
                found.setdefault((where, None if folded else piece.users, piece.frozen), []).append(piece)
        boxes = [
            Box(where, frozenset().union(*(one.users for one in same)), tuple(one.size for one in same), frozen)
            for (where, _, frozen), same in found.items()
        ]
        boxes.sort(key=lambda box: (-len(box.lanes), box.lanes))
        return Column(title, note, kind is not None, tuple(boxes)) if boxes else None

    columns = []
    for level in range(len(stages) + 1):
        if level:
            spec = stages[level - 1][0].spec
            columns.append(column(f"stage {level}", f"{spec.channels} ch, 1/{spec.stride}", None, level))
        kinds = dict.fromkeys(piece.kind for piece in pieces if piece.level == level and piece.kind is not None)
        columns += [column(kind, "", kind, level) for kind in kinds]
    heads = {name: sum(value.numel() for value in head.parameters()) for name, head in model.heads.items()}
    return Layout(
        tasks,
        lanes,
        [
            (f"{name}\n{_size(inputs[name])}", tuple(sorted({of[task] for task in readers})))
            for name, readers in model.read_by(inputs).items()
        ],
        [one for one in columns if one is not None],
        [tuple(heads[task] for task in names) for names in lanes],
    )


def _size(value: Tensor) -> str:
    return " x ".join(map(str, value.shape[1:])) if value.is_floating_point() else f"{value.shape[1]} tokens"


def _stages(model: MultiTaskModel, stages: Sequence[Sequence[Stage]], still: Collection[nn.Parameter]) -> Iterator[_Piece]:
    """Each copy of a stage; what else lies within it, as adapters, is added to it."""
    owners, everyone = model.architecture.owners(), frozenset(model.heads)
    for level, copies in enumerate(stages, start=1):
        for stage in copies:
            groups: dict[Users, list[tuple[str, nn.Parameter]]] = {}
            for name, parameter in stage.named_parameters():
                groups.setdefault(owners.get(parameter, frozenset()), []).append((name, parameter))
            if not groups:
                continue
            sizes = {users: sum(value.numel() for _, value in found) for users, found in groups.items()}
            main = max(sizes, key=lambda users: sizes[users])
            others = frozenset().union(*(users for users in groups if users != main))
            frozen = not main or all(parameter in still for _, parameter in groups[main])
            yield _Piece(level, None, main or others or everyone, sizes[main], frozen)
            for users, found in groups.items():
                if users and users != main:
                    yield _Piece(level, _kind_within(found[0][0], everyone), users, sizes[users])


def _kind_within(path: str, tasks: Collection[str]) -> str:
    """A name for what an architecture has put into a stage: the last but one word of its path that is no number and no task."""
    words = [word for word in path.split(".")[:-1] if not word.isdigit() and word not in tasks]
    return words[-1] if words else "added"


def _added(model: MultiTaskModel, stages: Sequence[Sequence[Stage]], inputs: Mapping[str, Tensor]) -> Iterator[_Piece]:
    """What the architecture has beside the stages, by kind, place and users."""
    architecture, owners, everyone = model.architecture, model.architecture.owners(), frozenset(model.heads)
    within = {parameter for copies in stages for stage in copies for parameter in stage.parameters()}
    ran = _order(model, stages, inputs)
    sums: dict[tuple[int, str, Users], int] = {}
    beside = [(name, value) for name, value in architecture.named_parameters() if value not in within]
    counted: dict[str, set[int]] = {}
    traced: dict[str, set[int]] = {}
    for name, _ in beside:
        kind = name.split(".")[0]
        counted.setdefault(kind, set()).add(_by_number(architecture, name, len(stages)) or 0)
        traced.setdefault(kind, set()).add(_by_order(name, ran, len(stages)))
    for name, parameter in beside:
        kind = name.split(".")[0]
        # Where all of a kind runs behind the last stage, its own numbers tell which stage it is for.
        level = _by_order(name, ran, len(stages))
        if len(traced[kind]) == 1 and 0 not in counted[kind]:
            level = _by_number(architecture, name, len(stages)) or level
        users = owners.get(parameter, frozenset())
        sums[level, kind, users] = sums.get((level, kind, users), 0) + parameter.numel()
    for (level, kind, users), size in sums.items():
        yield _Piece(level, kind.replace("_", " "), users or everyone, size, frozen=not users)


def _order(model: MultiTaskModel, stages: Sequence[Sequence[Stage]], inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """The modules of the architecture by path, with the level of the stage that ran before them."""
    levels = {stage: level for level, copies in enumerate(stages, start=1) for stage in copies}
    now, passes, found, handles = [0], dict[nn.Module, int](), dict[str, int](), []

    def watch(name: str, module: nn.Module) -> None:
        def note(*_: object) -> None:
            if isinstance(module, Stage) and module in levels:
                now[0] = levels[module]
                passes[module] = passes.get(module, 0) + 1
            found.setdefault(name, now[0])

        handles.append(module.register_forward_pre_hook(note))

    for name, module in model.architecture.named_modules():
        watch(name, module)
    try:
        with undisturbed(model):
            for source, tasks in sources(model, inputs).values():
                now[0] = 0
                model.architecture(source, tasks)
                if max(passes.values(), default=0) > 1 and len(tasks) <= LANES:
                    # Each task goes through the stages by itself: only alone does it begin at the beginning.
                    found.clear()
                    for task in tasks:
                        now[0] = 0
                        model.architecture(source, [task])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _by_order(name: str, ran: Mapping[str, int], depth: int) -> int:
    path = name.split(".")[:-1]
    while path:
        if (place := ran.get(".".join(path))) is not None:
            return place
        path.pop()
    return depth


def _by_number(architecture: nn.Module, name: str, depth: int) -> int | None:
    """The number of a stage in a path: of a list with about as many elements as there are stages, or a key of digits."""
    module = architecture
    for word in name.split("."):
        if word.isdigit() and isinstance(module, nn.ModuleList | nn.ParameterList) and depth - 1 <= len(module) <= depth:
            return int(word) + 1
        if word.isdigit() and isinstance(module, nn.ModuleDict) and all(key.isdigit() for key in module):
            return int(word) + ("0" in module)
        after = getattr(module, word)
        if not isinstance(after, nn.Module):
            return None
        module = after
    return None
