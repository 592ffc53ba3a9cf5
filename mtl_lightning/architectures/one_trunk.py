"""One trunk that all tasks share and that is adapted to each: once for all up to where they part, then once a task."""

from collections.abc import Collection, Sequence

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from mtl_lightning.architectures.base import Architecture
from mtl_lightning.architectures.parts import staged, wanted
from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.features import Features, FeatureSpec


class Statistics(nn.Module):
    """Batch norm's running means and variances of some stages, for one task: each task's features have their own.

    Else every task would move the same running statistics, and evaluation would normalise by a mixture of the tasks that no
    training step has seen.

    Args:
        stages: whose batch norms start them.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self._names: list[dict[str, str]] = []
        for level, stage in enumerate(stages):
            named = {}
            for path, module in stage.named_modules():
                for key, value in module.named_buffers(path, recurse=False) if isinstance(module, _NormBase) else ():
                    named[key] = f"{level}_{key.replace('.', '_')}"
                    self.register_buffer(named[key], value.clone())
            self._names.append(named)

    def of(self, level: int) -> dict[str, Tensor]:
        """Those of a stage, by their names in it."""
        return {key: self.get_buffer(name) for key, name in self._names[level].items()}


class OneTrunk(Architecture):
    """A trunk whose first stages run once, and whose other stages run once a task, one task after the other.

    As one larger batch of all tasks they would be a tenth faster on the CPU, but batch norm would then make each task's
    features, and the gradients of what is its own, depend on the other tasks.

    Args:
        encoder: the trunk.
        tasks: names.
        common: how many stages run once.
    """

    def __init__(self, encoder: Encoder, tasks: Sequence[str], common: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.tasks = list(tasks)
        self.shared_stages = common
        behind = staged(type(self).__name__, encoder)[common:]
        self.statistics = nn.ModuleDict({task: Statistics(behind) for task in tasks if behind})

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        """Each task's pyramid."""
        features, common = self.encoder.start(source), []
        for stage in self.encoder.stages[: self.shared_stages]:
            features = stage(features)
            common.append(features)
        return {task: self.branch(task, features, common) for task in wanted(tasks, self.tasks)}

    def branch(self, task: str, start: Features, common: Sequence[Features]) -> list[Features]:
        """A task's pyramid.

        Args:
            task: whose.
            start: what the last of the common stages gave, or the input if there is none.
            common: what all of them gave.
        """
        features, pyramid = start, []
        for level, stage in enumerate(self.encoder.stages):
            if level < len(common):
                features = common[level]
            else:
                statistics: Statistics = self.statistics[task]  # type: ignore[assignment]
                replaced = statistics.of(level - len(common)) | self.weights(task, level)
                features = functional_call(stage, replaced, (features,)) if replaced else stage(features)
            features = self.adapt(task, level, features)
            pyramid.append(features)
        return pyramid

    def weights(self, task: str, level: int) -> dict[str, Tensor]:
        """What stands in a stage in the place of its own weights for a task, by their names; only behind the common stages."""
        return {}

    def adapt(self, task: str, level: int, features: Features) -> Features:
        """What becomes of a stage's features for a task; before the last common stage they are as they are."""
        return features

    def specs(self, task: str) -> list[FeatureSpec]:
        """The encoder's."""
        return self.encoder.specs
