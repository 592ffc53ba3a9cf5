"""Small modules of each task at a shared trunk."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mtl_lightning.architectures.cells import average, joined, parted
from mtl_lightning.architectures.one_trunk import OneTrunk
from mtl_lightning.architectures.parts import belong, numbered, staged
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features


class Adapter(nn.Module):
    """What is added to a stage's features for a task.

    It sees each cell alone, and a class token as one more: where there is a token, cells come as [B, C, 1, h * w + 1].
    """

    @abstractmethod
    def forward(self, cells: Tensor) -> Tensor:
        """From [B, C, h, w] to the same shape, best 0 at the start."""


class BottleneckAdapter(Adapter):
    """Convolution 1x1 down to fewer channels, GELU, convolution 1x1 up again, which starts at zero.

    N. Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019; S.-A. Rebuffi et al., "Learning multiple
    visual domains with residual adapters", NeurIPS 2017. About 2 C² / reduction weights for C channels.

    Args:
        channels: of the features.
        reduction: channels per channel of the bottleneck, >= 1.

    Raises:
        ConfigError: a reduction below 1.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        if reduction < 1:
            raise ConfigError(f"model.architecture.init_args.adapter.init_args.reduction is {reduction}, expected 1 or more")
        hidden = max(1, channels // reduction)
        self.down = nn.Conv2d(channels, hidden, 1)
        self.up = nn.Conv2d(hidden, channels, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, cells: Tensor) -> Tensor:
        """The correction."""
        correction: Tensor = self.up(F.gelu(self.down(cells)))
        return correction


AdapterFactory = Callable[[int], Adapter]
"""Builds an adapter for a stage of so many channels."""


class TaskAdapters(OneTrunk):
    """A shared trunk with small adapters of each task behind its stages; the trunk may be frozen (``model.freeze``).

    Beside the trunk (the default; after the ladders of Y.-L. Sung, J. Cho, M. Bansal, "LST: Ladder Side-Tuning", NeurIPS 2022)
    adapters read what the stages give and do not feed back: the trunk runs once, and nothing runs backward through a frozen
    one. A task's correction d of level s is passed on to the next level, by average pooling and with its channels filled up
    with zeros (so that heads which read the last level alone train all adapters):

        x = f_s + carried d_(s-1)        d_s = carried d_(s-1) + adapter(x)        the task's level is f_s + d_s

    Sung et al. have one side network of narrow transformer blocks with gates; here it is an adapter per stage.

    In series (``feed_back``; Houlsby et al., ICML 2019; Rebuffi et al., NeurIPS 2017, who have them inside of blocks) the next
    stage reads f_s + adapter(f_s). That can change more, and makes the stages behind the first adapter run once for each task
    that is asked for, in time and memory of backward passes too, with batch statistics of each task's own.

    The encoder is shared by all tasks, each adapter is its task's own: about C² / 2 weights and multiplications per cell for C
    channels with the default adapter, 1.6 % of a ResNet-18 a task. A step of three tasks (64 x 64 pixels, 16 rows, CPU) takes 1.1
    times that of hard sharing beside, 2.5 times in series, 1.4 times in series behind the last two stages. With adapters at zero
    every task's pyramid is the trunk's.

    Args:
        encoder: the trunk.
        tasks: names.
        stages: those with an adapter behind them, counted from 1; null is all.
        adapter: builds one for a number of channels; null is :class:`BottleneckAdapter`.
        feed_back: whether the next stage reads what the adapter gave (series) or not (beside).

    Raises:
        ConfigError: stages that are not there.
    """

    shards = True

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[str],
        stages: list[int] | None = None,
        adapter: AdapterFactory | None = None,
        feed_back: bool = False,
    ) -> None:
        name, build = type(self).__name__, adapter or BottleneckAdapter
        levels = numbered(name, "stages", stages, encoder)
        super().__init__(encoder, tasks, levels[0] + 1 if feed_back else len(staged(name, encoder)))
        self.feed_back = feed_back
        self.adapters = nn.ModuleDict(
            {task: nn.ModuleDict({str(level): build(encoder.specs[level].channels) for level in levels}) for task in tasks}
        )

    def branch(self, task: str, start: Features, common: Sequence[Features]) -> list[Features]:
        """A task's pyramid, in series or beside."""
        if self.feed_back:
            return super().branch(task, start, common)
        delta: Tensor | None = None
        pyramid = []
        for level, features in enumerate(common):
            cells = joined(features)
            delta = None if delta is None else self._carried(delta, level, common)
            if self._has(task, level):
                change = self._adapter(task, level)(cells if delta is None else cells + delta)
                delta = change if delta is None else delta + change
            pyramid.append(features if delta is None else parted(cells + delta, features))
        return pyramid

    def adapt(self, task: str, level: int, features: Features) -> Features:
        """The features and their correction, where there is an adapter in series."""
        if not self._has(task, level):
            return features
        cells = joined(features)
        return parted(cells + self._adapter(task, level)(cells), features)

    def _has(self, task: str, level: int) -> bool:
        return str(level) in self.adapters[task]  # type: ignore[operator]

    def _adapter(self, task: str, level: int) -> Adapter:
        adapter: Adapter = self.adapters[task][str(level)]  # type: ignore[index]
        return adapter

    def _carried(self, delta: Tensor, level: int, common: Sequence[Features]) -> Tensor:
        """The correction of the level before, as one of this level."""
        before, features, specs = parted(delta, common[level - 1]), common[level], self.encoder.specs
        tensor = average(before, specs[level - 1], specs[level], features.tensor.shape[-2:])
        more = specs[level].channels - specs[level - 1].channels
        token = None if before.token is None else F.pad(before.token, (0, more))
        return joined(Features(F.pad(tensor, (0, 0, 0, 0, 0, more)), token=token))

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """The encoder belongs to all tasks, adapters to their task."""
        owners: dict[nn.Parameter, frozenset[str]] = {}
        belong(owners, [self.encoder], self.tasks)
        for task, adapters in self.adapters.items():
            belong(owners, [adapters], [task])
        return owners
