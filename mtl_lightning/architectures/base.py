"""The architecture contract: how tasks share an encoder."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mtl_lightning.architectures.seen import Seen
from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.features import Features, FeatureSpec


class Table(NamedTuple):
    """Numbers of an architecture that say who shares what, for logs and pictures.

    Attributes:
        rows: their names, tasks as a rule.
        columns: their names: experts, tasks, branches, stages.
        values: [rows, columns], detached; NaN where nothing can be shared.
    """

    rows: list[str]
    columns: list[str]
    values: Tensor


class Architecture(nn.Module):
    """From an input to each task's feature pyramid, over any staged encoder."""

    common: bool = False
    """Whether all tasks read the same pyramid: only then can gradients be taken at the features."""
    shards: bool = False
    """Whether all parameters are read in forward passes alone, a stage's in its own: under FSDP they are whole only there."""
    revision: int = 0
    """Counts the changes of :meth:`owners` in training."""

    @abstractmethod
    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        """Each task's pyramid, finest first.

        Args:
            source: the input as the data gives it, [B, C, H, W] in 0..1 or token ids [B, L].
            tasks: those whose pyramids are wanted; None is all. What no wanted task needs does not run.
        """

    @abstractmethod
    def specs(self, task: str) -> list[FeatureSpec]:
        """What a task's head will get, finest first."""

    @abstractmethod
    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """Each parameter and the tasks whose losses have a gradient by it; with two or more it is shared.

        One without tasks learns no more: it has no gradient, and neither decay nor momentum moves it.
        """

    def stages(self) -> list[list[Stage]]:
        """Every copy of the encoder's first stage, of its second, and so on; freezing goes by these.

        Those of all encoders within; an architecture that takes the stages out of the encoder lists them itself.
        """
        encoders = [list(module.stages) for module in self.modules() if isinstance(module, Encoder)]
        depth = max((len(stages) for stages in encoders), default=0)
        return [[stages[level] for stages in encoders if level < len(stages)] for level in range(depth)]  # type: ignore[misc]

    def penalties(self) -> dict[str, Tensor]:
        """Named scalars that are added to the objective after the weighting, and logged as ``penalty/NAME``.

        Asked for behind each training step's forward pass, whose activations they may be made of.
        """
        return {}

    def check_tasks(self, configured: Collection[str]) -> None:
        """Raise :class:`ConfigError` where options name tasks that are not configured.

        Those of the run are known when the architecture is built; ``model.only`` may have left others out.

        Args:
            configured: the names of all tasks of the configuration.
        """

    def set_epoch(self, epoch: int) -> str | None:
        """Called before every training step with the epoch, from 0, for what changes with time.

        Returns:
            What this changed, in words; None if nothing.
        """
        return None

    def foresee(self, epochs: int | None) -> str | None:
        """Called as training starts, for what will not come out as it is configured.

        Args:
            epochs: of the run, if there is a limit.

        Returns:
            A warning, in words; None if there is nothing to say.
        """
        return None

    def watch(self, on: bool) -> None:
        """Start to average what the gates give (:class:`~mtl_lightning.architectures.seen.Seen`), or stop it."""
        for module in self.modules():
            if isinstance(module, Seen):
                module.watch(on)

    def tables(self) -> dict[str, Table]:
        """Stitches, gates, learnt branches by name; those that depend on the input as means since :meth:`watch`."""
        return {}

    def attention(self, source: Features) -> dict[str, list[Tensor]]:
        """Maps [B, 1, h, w] in 0..1 of where each task looks, finest first; nothing where there is no attention."""
        return {}


ArchitectureFactory = Callable[[Encoder, Sequence[str]], Architecture]
"""Builds an architecture from the encoder and the tasks' names."""
