"""The architecture contract: how tasks share one or several encoders."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.features import Features, FeatureSpec


class Architecture(nn.Module):
    """From named inputs to each task's feature pyramid, over any staged encoder."""

    common: bool = False
    """Whether all tasks read the same pyramid: only then can gradients be taken at the features."""

    @abstractmethod
    def forward(self, inputs: Mapping[str, Features]) -> dict[str, list[Features]]:
        """Each task's pyramid, finest first."""

    @abstractmethod
    def specs(self, task: str) -> list[FeatureSpec]:
        """What a task's head will get, finest first."""

    @abstractmethod
    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """Each parameter and the tasks that use it; with two or more it is shared."""

    def stages(self) -> list[list[Stage]]:
        """Every copy of the encoder's first stage, of its second, and so on; freezing goes by these.

        Those of all encoders within; an architecture that takes the stages out of the encoder lists them itself.
        """
        encoders = [list(module.stages) for module in self.modules() if isinstance(module, Encoder)]
        depth = max((len(stages) for stages in encoders), default=0)
        return [[stages[level] for stages in encoders if level < len(stages)] for level in range(depth)]  # type: ignore[misc]

    def penalties(self) -> dict[str, Tensor]:
        """Named scalars that are added to the objective after the weighting, and logged as ``penalty/NAME``."""
        return {}


ArchitectureFactory = Callable[[Encoder, Sequence[str]], Architecture]
"""Builds an architecture from the encoder and the tasks' names."""
