"""Penalties on the network's weights, added to the objective behind the weighting."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.model import MultiTaskModel

WHOLE = {"all": "", "encoder": "architecture", "heads": "heads"}
"""The parts that every network has, and where they are in it."""
SHOWN = 40
"""Modules that a message names at most."""


class Penalty(ABC):
    """A scalar of the network that is added to the objective of every step, no matter which tasks are present.

    It takes no part in the tasks' losses, in what weighting methods see, or in ``loss`` as it is logged. It is logged as
    ``penalty/NAME``, and equal on all processes. It has no state.

    Args:
        name: for the log; null takes the part.
        part: which part of the network.
    """

    def __init__(self, name: str | None, part: str) -> None:
        self.name = part if name is None else name
        self.part = part

    @abstractmethod
    def __call__(self, model: MultiTaskModel) -> Tensor:
        """The scalar, with gradient to the network's parameters; in float32 or better."""


class WeightPenalty(Penalty):
    """The sum of absolute values and of squares of the weights of a part: l1 * sum |w| + l2 * sum w^2.

    Unlike an optimizer's decoupled weight decay it passes through the optimizer's moments. With plain SGD ``l2`` is a weight
    decay of twice its size. A head whose task is absent from a batch rests in that step, also from its penalty.

    Args:
        l1: factor of the absolute values, >= 0 (R. Tibshirani, "Regression shrinkage and selection via the lasso", 1996).
        l2: factor of the squares, >= 0.
        part: ``all``, ``encoder`` (the architecture with everything that tasks share), ``heads``, ``heads.TASK``, or any module
            of the network by its path (``architecture.encoder.stages.0``).
        biases: also penalise parameters of one dimension: biases, and the scales and shifts of norms.
        name: for the log, ``penalty/NAME``; null takes the part.

    Raises:
        ConfigError: a negative factor, or nothing to penalise.
    """

    def __init__(
        self, l1: float = 0.0, l2: float = 0.0, part: str = "all", biases: bool = False, name: str | None = None
    ) -> None:
        super().__init__(name, part)
        if not (0 <= l1 < float("inf") and 0 <= l2 < float("inf") and l1 + l2 > 0):
            raise ConfigError(f"WeightPenalty on {part}: l1 is {l1} and l2 {l2}, expected numbers >= 0, one of them > 0")
        self.l1, self.l2, self.biases = l1, l2, biases

    def __call__(self, model: MultiTaskModel) -> Tensor:
        """The weighted sums."""
        weights = [weight for weight in find_part(model, self.part).parameters() if self.biases or weight.ndim > 1]
        if not weights:
            raise ConfigError(
                f"WeightPenalty on {self.part}: the part has no weights of more than one dimension; set biases to true"
            )
        parts = []
        # Autocast would take the squares in half precision.
        with torch.autocast(weights[0].device.type, enabled=False):
            for weight in weights:
                if self.l1:
                    parts.append(self.l1 * weight.abs().sum())
                if self.l2:
                    parts.append(self.l2 * weight.square().sum())
            return torch.stack(parts).sum()


def find_part(model: MultiTaskModel, part: str) -> nn.Module:
    """A module of the network by its path, or one of the parts that every network has; raises :class:`ConfigError`."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    path = WHOLE.get(part, part)
    if path in modules and part:
        return modules[path]
    named = [*WHOLE, *(f"heads.{task}" for task in model.heads)]
    below = [name for name in modules if name and name not in (*named, "architecture")][:SHOWN]
    raise ConfigError(
        f"model.penalties: the network has no part '{part}'; it has {', '.join(named)}, and the modules {', '.join(below)}, …"
    )


def choose_penalties(penalties: Sequence[Penalty], model: MultiTaskModel, configured: Sequence[str]) -> list[Penalty]:
    """The penalties of this network, each tried once; those of the heads of tasks that ``model.only`` leaves out are dropped.

    Args:
        penalties: as configured.
        model: the network.
        configured: the names of all configured tasks.

    Raises:
        ConfigError: a part that is not there, a name twice, or a penalty that is not one finite number.
    """
    absent = [f"heads.{task}" for task in configured if task not in model.heads]
    chosen = [penalty for penalty in penalties if not any(f"{penalty.part}.".startswith(f"{part}.") for part in absent)]
    names = [penalty.name for penalty in chosen]
    if len(set(names)) < len(names):
        raise ConfigError(f"model.penalties: the names {', '.join(names)} are not all different; give each one of its own")
    with torch.no_grad():
        for penalty in chosen:
            value = penalty(model)
            if value.ndim or not bool(value.isfinite()):
                raise ConfigError(f"model.penalties: '{penalty.name}' is {value.tolist()}, expected one finite number")
    return chosen


def penalties_of(penalties: Sequence[Penalty], model: MultiTaskModel) -> dict[str, Tensor]:
    """All penalties of a step by name, those of the architecture included; raises :class:`ConfigError` for a name twice."""
    found = dict(model.architecture.penalties())
    for penalty in penalties:
        if penalty.name in found:
            raise ConfigError(f"model.penalties: the architecture has a penalty '{penalty.name}', too; name yours otherwise")
        found[penalty.name] = penalty(model)
    return found
