"""The U-Net decoder over any encoder's stages."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.heads.base import Head, need_pyramid
from mtl_lightning.heads.blocks import Norm, check_options, conv3x3, resize


class UpBlock(nn.Module):
    """One step up: narrow the coarser map, resize it to the finer one, join both, two 3x3 convolutions.

    Args:
        coarse: channels of the coarser map.
        skip: channels of the finer one.
        width: channels of the result.
        norm: of the 3x3 convolutions.
    """

    def __init__(self, coarse: int, skip: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(coarse, width, 1)
        self.merge = nn.Sequential(conv3x3(width + skip, width, norm), conv3x3(width, width, norm))

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """[B, width, h, w] at the height and width of ``skip``."""
        # Narrowing first costs a quarter of narrowing the resized map, and a 1x1 convolution gives the same either way.
        up = resize(self.narrow(coarse), (skip.shape[-2], skip.shape[-1]))
        merged: Tensor = self.merge(torch.cat([up, skip], dim=1))
        return merged


class UNet(Head):
    """Dense predictions from the deepest map upward through all finer ones.

    After Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015. Ours resizes
    bilinearly behind a 1x1 convolution (the paper: a transposed convolution), pads its convolutions, so that no picture's
    size needs to be a multiple of anything, and ends at the finest stage, from which the prediction is resized.

    Args:
        specs: the feature pyramid, finest first.
        channels: outputs per pixel.
        widths: channels of the steps up, the deepest first, one fewer than there are maps; null takes 128, halved at each
            step, at most half of the finer map's channels and at least 16.
        dropout: share of the values before the last convolution left out in training, in [0, 1).
        norm: of the 3x3 convolutions: ``batch``, ``layer`` (over the channels of each cell) or ``none``.

    Raises:
        ConfigError: several maps of one stride, widths that do not fit the pyramid, or a number out of its range.
    """

    dense = True

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        channels: int,
        widths: list[int] | None = None,
        dropout: float = 0.0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        need_pyramid(type(self).__name__, specs)
        skips = [spec.channels for spec in reversed(specs[:-1])]
        if widths is None:
            widths = [max(16, min(skip // 2, 128 >> step)) for step, skip in enumerate(skips)]
        if len(widths) != len(skips) or min(widths, default=1) < 1:
            raise ConfigError(
                f"head {type(self).__name__}: widths is {widths}, expected {len(skips)} numbers >= 1, one for each step up "
                f"through the {len(specs)} maps of the pyramid"
            )
        check_options(type(self).__name__, dropout, norm, min(widths, default=2))
        coarse = [specs[-1].channels, *widths]
        self.blocks = nn.ModuleList(
            UpBlock(before, skip, width, norm) for before, skip, width in zip(coarse, skips, widths, strict=False)
        )
        self.dropout = nn.Dropout(dropout)
        self.predict = nn.Conv2d(coarse[-1], channels, 1)

    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        """Predict [B, channels, height, width]."""
        tensor = features[-1].tensor
        for block, skip in zip(self.blocks, reversed(features[:-1]), strict=True):
            tensor = block(tensor, skip.tensor)
        return resize(self.predict(self.dropout(tensor)), size)
