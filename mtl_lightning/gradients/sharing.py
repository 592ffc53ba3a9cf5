"""Which parameters learn at present, and whether one task uses them or several. Pure torch."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from mtl_lightning.model import MultiTaskModel


class Sharing:
    """The parameters of a network that learn, sorted by who uses them.

    Attributes:
        shared: those that two tasks or more use, in the order of the network.
        own: those of one task alone, by task.
        last: of ``shared``, those of the last layer with weights; where tasks share different layers, of those that most use.

    Args:
        model: says who uses which.
        frozen: parameters that do not learn at present.
    """

    def __init__(self, model: MultiTaskModel, frozen: Collection[nn.Parameter] = ()) -> None:
        still = set(frozen)
        self.own: dict[str, list[nn.Parameter]] = {name: [] for name in model.heads}
        self.shared: list[nn.Parameter] = []
        self._users: list[frozenset[str]] = []
        self._used: dict[tuple[frozenset[str], bool], list[nn.Parameter]] = {}
        for parameter, users in model.owners().items():
            if not parameter.requires_grad or parameter in still or not users:
                continue
            if len(users) > 1:
                self.shared.append(parameter)
                self._users.append(users)
            else:
                self.own[next(iter(users))].append(parameter)
        self.last: list[nn.Parameter] = []
        most = max(map(len, self._users), default=0)
        shared = {parameter for parameter, users in zip(self.shared, self._users, strict=True) if len(users) == most}
        for module in model.architecture.modules():
            direct = [parameter for parameter in module.parameters(recurse=False) if parameter in shared]
            if any(parameter.ndim > 1 for parameter in direct):
                self.last = direct

    @property
    def size(self) -> int:
        """How many numbers the shared parameters are."""
        return sum(parameter.numel() for parameter in self.shared)

    @property
    def dtype(self) -> torch.dtype:
        """In which their gradients are kept: the longest type among them, float32 at least."""
        found = torch.float32
        for parameter in self.shared:
            found = torch.promote_types(found, parameter.dtype)
        return found

    def used_by(self, *tasks: str, last: bool = False) -> list[nn.Parameter]:
        """The shared parameters that any of the tasks uses; with ``last``, those of the last layer."""
        wanted = (frozenset(tasks), last)
        if wanted not in self._used:
            kept = {id(parameter) for parameter in self.last}
            pairs = zip(self.shared, self._users, strict=True)
            chosen = [parameter for parameter, users in pairs if users & wanted[0]]
            self._used[wanted] = [parameter for parameter in chosen if not last or id(parameter) in kept]
        return self._used[wanted]

    def all_of(self, tasks: Sequence[str]) -> list[nn.Parameter]:
        """All parameters that any of the tasks uses."""
        return self.used_by(*tasks) + [parameter for task in tasks for parameter in self.own[task]]
