"""What a network consists of: parameters by who learns them, and what a row costs."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from mtl_lightning.analysis.flops import Flops, count_flops
from mtl_lightning.model import MultiTaskModel


@dataclass(frozen=True)
class Part:
    """Parameters with the same users.

    Attributes:
        tasks: whose losses have a gradient by them, in the order of the tasks.
        parameters: how many numbers they are.
        learning: how many of these learn.
    """

    tasks: tuple[str, ...]
    parameters: int = 0
    learning: int = 0


@dataclass(frozen=True)
class ModelSummary:
    """A network in numbers.

    Attributes:
        tasks: names.
        shared: parameters of two tasks or more, those with the most tasks first.
        own: of the architecture's parameters, those of one task alone; tasks without any are not here.
        heads: by task.
        nobody: what no task's loss has a gradient by, as a trunk that is frozen for good.
        row: what the FLOPs are of, in words.
        flops: of one row; in words why they could not be counted.
    """

    tasks: list[str]
    shared: list[Part]
    own: dict[str, Part]
    heads: dict[str, Part]
    nobody: Part
    row: str
    flops: Flops | str

    @property
    def parts(self) -> list[Part]:
        """All of them; they add up to the network."""
        return [*self.shared, *self.own.values(), *self.heads.values(), self.nobody]

    @property
    def parameters(self) -> int:
        """Of the whole network."""
        return sum(part.parameters for part in self.parts)

    @property
    def learning(self) -> int:
        """Of the whole network, those that learn."""
        return sum(part.learning for part in self.parts)

    def used_by(self, task: str) -> int:
        """Parameters that a task's loss has a gradient by, its head's included."""
        return sum(part.parameters for part in self.parts if task in part.tasks)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for ``summary.json``."""
        flops = {"problem": self.flops} if isinstance(self.flops, str) else asdict(self.flops) | {"ratio": self.flops.saved}
        return {
            "parameters": self.parameters,
            "learning": self.learning,
            "shared": [asdict(part) for part in self.shared],
            "own": {name: asdict(part) for name, part in self.own.items()},
            "heads": {name: asdict(part) for name, part in self.heads.items()},
            "nobody": asdict(self.nobody),
            "row": self.row,
            "flops": flops,
        }


def summarize_model(model: MultiTaskModel, inputs: Mapping[str, Tensor], still: Collection[nn.Parameter] = ()) -> ModelSummary:
    """Count a network's parameters by their users, and the FLOPs of a row.

    Args:
        model: left as it is: modes, batch norm's statistics and random streams do not change.
        inputs: one row, as for the model: ``image`` [1, C, H, W] in 0..1, ``text`` int64 [1, L].
        still: parameters that do not learn beside those that need no gradient.

    Raises:
        MTLError: the network refuses the input.
    """
    tasks, fixed = list(model.heads), set(still)
    users = {parameter: tuple(name for name in tasks if name in who) for parameter, who in model.architecture.owners().items()}
    groups: dict[tuple[str, ...], list[nn.Parameter]] = {}
    for parameter in model.architecture.parameters():
        groups.setdefault(users.get(parameter, ()), []).append(parameter)

    def part(names: tuple[str, ...], parameters: Collection[nn.Parameter]) -> Part:
        learning = [value for value in parameters if value.requires_grad and value not in fixed]
        return Part(names, sum(value.numel() for value in parameters), sum(value.numel() for value in learning))

    parts = {names: part(names, parameters) for names, parameters in groups.items()}
    return ModelSummary(
        tasks=tasks,
        shared=sorted((found for names, found in parts.items() if len(names) > 1), key=lambda found: -len(found.tasks)),
        own={name: parts[(name,)] for name in tasks if (name,) in parts},
        heads={name: part((name,), list(head.parameters())) for name, head in model.heads.items()},
        nobody=parts.get((), Part(())),
        row=" and ".join(f"{name} {_size(value)}" for name, value in inputs.items()),
        flops=count_flops(model, inputs),
    )


def _size(value: Tensor) -> str:
    return " x ".join(map(str, value.shape[1:])) + ("" if value.is_floating_point() else " tokens")
