"""Atrous spatial pyramid pooling: the DeepLab heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec, pool
from mtl_lightning.heads.base import Head, need_maps, need_pyramid
from mtl_lightning.heads.blocks import Norm, check_options, conv1x1, conv3x3, resize

RATES, STRIDE = (6, 12, 18), 16
"""The paper's rates, and the stride that they are for."""
FARTHEST = 1 << 16
"""Cells: farther than any map reaches, and not yet past what a convolution can count."""
LOW_LEVEL, NARROW = 4, 48
"""The stride of the finer map that DeepLabv3+ adds, and the channels it is narrowed to."""


class ASPP(Head):
    """Dense predictions from the last map, seen at several scales at once.

    After L.-C. Chen et al., "Rethinking atrous convolution for semantic image segmentation", 2017 (DeepLabv3): a 1x1
    convolution, three 3x3 convolutions with holes and the average of the whole picture, joined by a 1x1 convolution. With
    ``low_level`` a finer map is joined, too (L.-C. Chen et al., "Encoder-decoder with atrous separable convolution", ECCV
    2018, DeepLabv3+; ours with plain convolutions). Encoders here keep their strides, so that the map is as coarse as the
    encoder made it.

    Args:
        specs: the feature pyramid, finest first.
        channels: outputs per pixel.
        width: channels of each branch (the paper: 256).
        rates: distances between the taps of the 3x3 convolutions, in cells; null takes 6, 12, 18 at stride 16, twice that at
            stride 8, half of it at 32.
        low_level: join the finest map of stride 4 or more as well.
        dropout: share of the joined values left out in training, in [0, 1).
        norm: of all convolutions: ``batch``, ``layer`` (over the channels of each cell) or ``none``.

    Raises:
        ConfigError: a feature that is not a map, ``low_level`` on maps of one stride, or a number out of its range.
    """

    dense = True

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        channels: int,
        width: int = 128,
        rates: list[int] | None = None,
        low_level: bool = False,
        dropout: float = 0.1,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        name, last = type(self).__name__, specs[-1] if specs else FeatureSpec(1)
        need_maps(name, specs)
        rates = [max(1, round(rate * STRIDE / last.stride)) for rate in RATES] if rates is None else list(rates)
        if width < 1 or not rates or min(rates) < 1 or max(rates) > FARTHEST:
            raise ConfigError(f"head {name}: width is {width} and rates {rates}, expected numbers >= 1, rates up to {FARTHEST}")
        check_options(name, dropout, norm, width)
        self.branches = nn.ModuleList(
            [conv1x1(last.channels, width, norm), *(conv3x3(last.channels, width, norm, rate) for rate in rates)]
        )
        self.image = conv1x1(last.channels, width, norm)
        self.project = conv1x1((len(rates) + 2) * width, width, norm)
        self.level: int | None = None
        if low_level:
            need_pyramid(name, specs)
            fine = [level for level, spec in enumerate(specs) if spec.stride < last.stride]
            if not fine:
                raise ConfigError(f"head {name}: low_level is true, but the encoder gives a single map; set it to false")
            self.level = next((level for level in fine if specs[level].stride >= LOW_LEVEL), fine[-1])
            self.narrow = conv1x1(specs[self.level].channels, NARROW, norm)
            self.refine = nn.Sequential(conv3x3(width + NARROW, width, norm), conv3x3(width, width, norm))
        self.dropout = nn.Dropout(dropout)
        self.predict = nn.Conv2d(width, channels, 1)

    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        """Predict [B, channels, height, width]; padding is left out of the picture's average."""
        last = features[-1]
        whole = self.image(pool(last)[..., None, None]).expand(-1, -1, *last.tensor.shape[-2:])
        tensor = self.project(torch.cat([*(branch(last.tensor) for branch in self.branches), whole], 1))
        if self.level is not None:
            skip = features[self.level]
            up = resize(tensor, (skip.tensor.shape[-2], skip.tensor.shape[-1]))
            tensor = self.refine(skip.like(torch.cat([up, self.narrow(skip.tensor)], 1)).tensor)
        return resize(self.predict(self.dropout(tensor)), size)
