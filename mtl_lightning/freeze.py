"""Stages of the encoder that do not learn, for the whole run or its first epochs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mtl_lightning.architectures.base import Architecture
from mtl_lightning.encoders.base import describe
from mtl_lightning.errors import ConfigError


@dataclass
class Freeze:
    """Which stages of the encoder are frozen, and how long.

    Attributes:
        stages: how many, from the first on, or all.
        epochs: how many epochs until they learn with the rest; null is never.
    """

    stages: int | Literal["all"] = "all"
    epochs: int | None = None


class Freezer:
    """Holds stages still: no gradient, and batch norm, dropout and stochastic depth in evaluation mode.

    Every copy of a stage in the architecture is frozen. Nothing runs backward through frozen stages with nothing that learns
    before them, so that they cost their forward pass alone. Their parameters keep ``requires_grad`` and stay with the
    optimizer, which passes over parameters without gradient: neither decay nor momentum moves them.

    Args:
        config: which stages, how long.
        architecture: with the stages.

    Raises:
        ConfigError: more stages than there are, or a number below 1.
    """

    def __init__(self, config: Freeze, architecture: Architecture) -> None:
        depths = architecture.stages()
        count = len(depths) if config.stages == "all" else config.stages
        if not 1 <= count <= len(depths):
            raise ConfigError(
                f"model.freeze.stages is {config.stages}, expected 1 to {len(depths)}, or all: the encoder has the stages "
                f"{describe([copies[0].spec for copies in depths])}"
            )
        if config.epochs is not None and config.epochs < 1:
            raise ConfigError(f"model.freeze.epochs is {config.epochs}, expected 1 or more, or null for the whole run")
        self.epochs = config.epochs
        self.count = count
        self.frozen = False
        self._stages = [stage for copies in depths[:count] for stage in copies]
        self._parameters = list(dict.fromkeys(parameter for stage in self._stages for parameter in stage.parameters()))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What does not learn at present."""
        return self._parameters if self.frozen else []

    @property
    def for_good(self) -> list[nn.Parameter]:
        """What never learns in this run."""
        return self._parameters if self.epochs is None else []

    def update(self, epoch: int) -> str | None:
        """Freeze or thaw as the epoch (from 0) wants it.

        Returns:
            What this changed, in words; None if nothing.
        """
        wanted = self.epochs is None or epoch < self.epochs
        if wanted == self.frozen:
            return None
        self.frozen = wanted
        for stage in self._stages:
            stage.freeze(wanted)
        size = f"{sum(parameter.numel() for parameter in self._parameters):,} weights"
        until = "" if self.epochs is None else f" until the end of epoch {self.epochs}"
        which = "stage 1" if self.count == 1 else f"stages 1 to {self.count}"
        return f"Epoch {epoch + 1}: {which} of the encoder ({size}) {f'frozen{until}' if wanted else 'thawed'}"


def anchor(objective: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The same objective, of which parameters that do not learn are a part with an exact 0.

    DistributedDataParallel waits for the gradient of every parameter.
    """
    for parameter in parameters:
        objective = objective + parameter.flatten()[0] * 0
    return objective
