"""Trunks whose features are fused by 1x1 convolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.architectures.columns import Columns, Mixer, check_same, first_shares
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.features import Features, FeatureSpec


class Fusion(Mixer):
    """All tasks' features side by side through a 1x1 convolution; a class token is one cell more.

    Args:
        shares: how much of each task goes into a channel at the start, [T].
        channels: of each task.
        norm: batch norm behind the convolution; otherwise it has a bias.
        relu: ReLU at the end.
    """

    def __init__(self, shares: Tensor, channels: int, norm: bool, relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(len(shares) * channels, channels, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()
        with torch.no_grad():
            self.conv.weight.copy_(torch.cat([share * torch.eye(channels) for share in shares], dim=1)[..., None, None])
            if self.conv.bias is not None:
                self.conv.bias.zero_()

    def forward(self, features: Sequence[Features]) -> Features:
        """The fused features."""
        joined = torch.cat([level.tensor for level in features], dim=1)
        tokens = [level.token for level in features if level.token is not None]
        if not tokens:
            return features[0].like(self._fuse(joined))
        # What the token goes through is what the map goes through, so that either trains all of it.
        cells = torch.cat([joined.flatten(2), torch.cat(tokens, dim=1).unsqueeze(2)], dim=2)
        fused = self._fuse(cells.unsqueeze(3)).squeeze(3)
        level = features[0].like(fused[..., :-1].reshape(len(fused), -1, *joined.shape[-2:]))
        return Features(level.tensor, level.valid, fused[..., -1])

    def _fuse(self, tensor: Tensor) -> Tensor:
        fused: Tensor = self.relu(self.norm(self.conv(tensor)))
        return fused

    def shares(self) -> Tensor:
        """Of the norm of the weights, the share of each task."""
        channels = self.conv.out_channels
        norms: Tensor = torch.linalg.vector_norm(self.conv.weight.view(channels, -1, channels), dim=(0, 2))
        return norms.div(norms.sum())


class NDDR(Columns):
    """Neural discriminative dimensionality reduction: Gao et al., "NDDR-CNN", CVPR 2019.

    Each task has an encoder of its own. Behind the chosen stages all tasks' features are concatenated, and each task reduces
    them to its own by a 1x1 convolution, batch norm and ReLU; its head reads the outcome. The convolutions start as the
    paper's: diagonal, 0.9 of a task's own channel and the rest in equal parts of the others'.

    The ReLU suits encoders whose stages end with one. Those of transformers and ConvNeXt give numbers of both signs; take
    ``relu: false`` there, and ``norm: false`` where batches are small. The paper trains these layers at a higher learning rate
    than the network: set ``model.architecture_lr``. Its short cut, which brings all scales to the head, is not part of this: a
    head that reads all levels does the same.

    Up to the last unit all trunks and layers serve all tasks and are shared; the last unit's layers and the stages behind it
    are each a task's own. A unit has T x T x C x C weights. With T tasks, parameters and FLOPs are T times the encoder's and
    those of the units; a single task asked for runs all trunks up to the last unit.

    Args:
        encoder: with stages.
        tasks: names.
        same: how much of its own features a task starts with, 0 to 1.
        norm: batch norm behind the convolution; otherwise it has a bias.
        relu: ReLU at the end.
        stages: behind which stages there is a unit, counted from 1; null is every stage.

    Raises:
        ConfigError: a share outside of 0 to 1, or stages that do not exist.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[str],
        same: float = 0.9,
        norm: bool = True,
        relu: bool = True,
        stages: list[int] | None = None,
    ) -> None:
        check_same("NDDR", same)

        def mixer(spec: FeatureSpec, place: int) -> Mixer:
            return Fusion(first_shares(len(tasks), place, same), spec.channels, norm, relu)

        super().__init__(encoder, tasks, encoder.fresh, stages, mixer)
