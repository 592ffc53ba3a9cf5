"""Trunks that are stitched together by learnt linear combinations."""

from collections.abc import Sequence

from torch import Tensor, nn

from mtl_lightning.architectures.columns import Columns, Mixer, check_same, first_shares
from mtl_lightning.architectures.parts import blend
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.features import Features, FeatureSpec


class Stitch(Mixer):
    """A weighted sum of all tasks' features, class tokens included.

    Args:
        shares: of each task at the start, [T].
        channels: each channel has weights of its own; None is one weight for all of a task's channels.
    """

    def __init__(self, shares: Tensor, channels: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(shares if channels is None else shares[:, None].repeat(1, channels))

    def forward(self, features: Sequence[Features]) -> Features:
        """The sum."""
        return blend(features, self.weight if self.weight.ndim == 1 else self.weight[None])

    def shares(self) -> Tensor:
        """The weights, their means over channels."""
        return self.weight if self.weight.ndim == 1 else self.weight.mean(1)


class CrossStitch(Columns):
    """Cross-stitch networks: Misra et al., "Cross-stitch Networks for Multi-task Learning", CVPR 2016.

    Each task has an encoder of its own. Behind the chosen stages, what goes on in a task's trunk, and what its head reads of
    that stage, is a learnt linear combination of all tasks' features. It starts near the identity: 0.9 of its own, the rest in
    equal parts of the others.

    The units learn slowly by themselves. The paper gives them a much higher rate than the network: raise
    ``model.architecture_lr``. AdamW's weight decay grows with that rate and pulls the units to 0: lower ``weight_decay``
    with it. The paper's trunks are single-task networks that were trained before; ours are fresh copies, or the pretrained
    encoder in each.

    Up to the last unit all trunks serve all tasks and are shared; the last unit's weights and the stages behind it are each a
    task's own. Units have T x T weights, or T x T x C by channel. With T tasks, parameters and FLOPs are T times the encoder's;
    a single task asked for runs all trunks up to the last unit.

    Args:
        encoder: with stages.
        tasks: names.
        same: how much of its own features a task starts with, 0 to 1.
        channels: each channel has its own weights, as in the paper; otherwise a pair of tasks has one.
        stages: behind which stages there is a unit, counted from 1; null is every stage.

    Raises:
        ConfigError: a share outside of 0 to 1, or stages that do not exist.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[str],
        same: float = 0.9,
        channels: bool = True,
        stages: list[int] | None = None,
    ) -> None:
        check_same("CrossStitch", same)

        def mixer(spec: FeatureSpec, place: int) -> Mixer:
            return Stitch(first_shares(len(tasks), place, same), spec.channels if channels else None)

        super().__init__(encoder, tasks, encoder.fresh, stages, mixer)
