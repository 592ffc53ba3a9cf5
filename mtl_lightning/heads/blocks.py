"""Small parts that heads share: norms, convolutions, resizing."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError

Norm = Literal["batch", "layer", "none"]
"""``batch``: batch norm. ``layer``: layer norm over the channels of each cell alone, which knows nothing of other rows, cells or
padding and so suits small batches and pictures of all sizes. ``none``: no norm (convolutions have a bias instead)."""


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a single value per channel (one row, a 1x1 map) with its running statistics.

    The variance of one value is 0, so in training PyTorch's batch norm refuses it: a small image that is alone in the last
    batch would end the run.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, h, w]."""
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


class VectorBatchNorm(BatchNorm):
    """The same for vectors."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C]."""
        return super().forward(input[..., None, None])[..., 0, 0]


class CellNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell (J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer normalization", 2016)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, h, w]."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def norm_layers(norm: Norm, channels: int, vector: bool = False) -> list[nn.Module]:
    """The norm as the parts of a sequence, an empty list for ``none``.

    Args:
        norm: which.
        channels: of what is normalised.
        vector: for [B, C] instead of [B, C, h, w].
    """
    if norm == "none":
        return []
    if norm == "batch":
        return [VectorBatchNorm(channels) if vector else BatchNorm(channels)]
    return [nn.LayerNorm(channels) if vector else CellNorm(channels)]


def check_options(head: str, dropout: float, norm: Norm, normalised: int = 2) -> None:
    """Check what all heads have.

    Args:
        head: its name.
        dropout: share of values left out.
        norm: which.
        normalised: how many channels the narrowest norm sees.

    Raises:
        ConfigError: one is out of its range.
    """
    if not 0 <= dropout < 1:
        raise ConfigError(f"head {head}: dropout is {dropout}, expected a share in [0, 1)")
    if norm not in ("batch", "layer", "none"):
        raise ConfigError(f"head {head}: norm is '{norm}', expected batch, layer or none")
    if norm == "layer" and normalised < 2:
        raise ConfigError(f"head {head}: norm is layer on a single channel, which would be 0 always; take a larger width")


def conv3x3(in_channels: int, out_channels: int, norm: Norm = "batch", dilation: int = 1) -> nn.Sequential:
    """Convolution 3x3 that keeps height and width, norm (or a bias), ReLU."""
    return _block(nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=norm == "none"), norm)


def conv1x1(in_channels: int, out_channels: int, norm: Norm = "batch") -> nn.Sequential:
    """Convolution 1x1, norm (or a bias), ReLU."""
    return _block(nn.Conv2d(in_channels, out_channels, 1, bias=norm == "none"), norm)


def _block(convolution: nn.Conv2d, norm: Norm) -> nn.Sequential:
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(convolution, *norm_layers(norm, convolution.out_channels), nn.ReLU(inplace=True))


def resize(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, h, w] at another height and width, bilinear; the same height and width give the same values."""
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
