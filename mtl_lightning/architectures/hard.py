"""One trunk for all tasks."""

from collections.abc import Collection, Sequence

from torch import nn

from mtl_lightning.architectures.base import Architecture
from mtl_lightning.architectures.parts import wanted
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.features import Features, FeatureSpec


class HardSharing(Architecture):
    """Hard parameter sharing (Caruana, Multitask Learning, 1997): every task's head reads the same encoder.

    The encoder runs once per input and step, and all of its parameters are shared.

    Args:
        encoder: the trunk.
        tasks: names.
    """

    common = True
    shards = True

    def __init__(self, encoder: Encoder, tasks: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.tasks = list(tasks)

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        """The same pyramid for every task."""
        return dict.fromkeys(wanted(tasks, self.tasks), self.encoder(source))

    def specs(self, task: str) -> list[FeatureSpec]:
        """The encoder's."""
        return self.encoder.specs

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """Everything belongs to all tasks."""
        everyone = frozenset(self.tasks)
        return dict.fromkeys(self.parameters(), everyone)
