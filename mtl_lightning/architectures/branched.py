"""Copies of an encoder's stages in a tree: tasks share a way for some stages and part."""

from collections.abc import Mapping, Sequence

from torch import nn

from mtl_lightning.architectures.base import Architecture
from mtl_lightning.architectures.parts import belong, copies, staged
from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.features import Features, FeatureSpec

Route = tuple[int, ...]
"""Which copy of each stage a task's features come through."""


class Branched(Architecture):
    """What architectures have in common whose tasks go different ways through copies of the stages.

    The first copy of each stage is the encoder's own.

    Args:
        encoder: with stages.
        tasks: names.
        numbers: copies of each stage, those of the encoder counted.
    """

    def __init__(self, encoder: Encoder, tasks: Sequence[str], numbers: Sequence[int]) -> None:
        super().__init__()
        stages = staged(type(self).__name__, encoder)
        self.tasks = list(tasks)
        self.encoder = encoder
        self.copies = nn.ModuleList(
            nn.ModuleList(copies(stage, number, encoder.fresh)[1:]) for stage, number in zip(stages, numbers, strict=True)
        )

    def specs(self, task: str) -> list[FeatureSpec]:
        """The encoder's."""
        return self.encoder.specs

    def stages(self) -> list[list[Stage]]:
        """The encoder's own and the further copies."""
        return [[own, *more] for own, more in zip(self.encoder.stages, self.copies, strict=True)]  # type: ignore[misc, list-item]

    def along(self, source: Features, routes: Mapping[str, Route]) -> dict[str, list[Features]]:
        """Each task's pyramid on its way; what several go through together runs once, and one way is one pyramid."""
        stages, start = self.stages(), self.encoder.start(source)
        seen: dict[Route, list[Features]] = {(): []}
        for route in routes.values():
            for depth in range(len(route)):
                if route[: depth + 1] not in seen:
                    before = seen[route[:depth]]
                    stage = stages[depth][route[depth]]
                    seen[route[: depth + 1]] = [*before, stage(before[-1] if before else start)]
        return {task: seen[route] for task, route in routes.items()}

    def owned(self, routes: Mapping[str, Route]) -> dict[nn.Parameter, frozenset[str]]:
        """The tasks whose ways lead through each parameter, none where nobody's does."""
        owners: dict[nn.Parameter, frozenset[str]] = dict.fromkeys(self.parameters(), frozenset())
        for depth, stages in enumerate(self.stages()):
            for copy, stage in enumerate(stages):
                belong(owners, [stage], [task for task, route in routes.items() if route[depth] == copy])
        return owners
