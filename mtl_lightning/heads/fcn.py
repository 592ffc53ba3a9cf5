"""The fully convolutional head."""

from collections.abc import Sequence

from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.heads.base import Head, need_maps
from mtl_lightning.heads.blocks import Norm, check_options, conv3x3, resize


class FCN(Head):
    """Dense predictions from the last map alone.

    After Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, in its plainest form (FCN-32s):
    convolution 3x3, norm, ReLU, dropout, convolution 1x1, bilinear upsampling that is fixed where the paper learns it.

    Args:
        specs: the feature pyramid, finest first.
        channels: outputs per pixel.
        width: channels of the 3x3 convolution; null takes a quarter of the last map's.
        dropout: share of values left out in training, in [0, 1).
        norm: behind the 3x3 convolution: ``batch``, ``layer`` (over the channels of each cell) or ``none``.

    Raises:
        ConfigError: a feature that is not a map, or a number out of its range.
    """

    dense = True

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        channels: int,
        width: int | None = None,
        dropout: float = 0.1,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        need_maps(type(self).__name__, specs)
        width = max(1, specs[-1].channels // 4) if width is None else width
        if width < 1:
            raise ConfigError(f"head {type(self).__name__}: width is {width}, expected 1 or more")
        check_options(type(self).__name__, dropout, norm, width)
        self.layers = nn.Sequential(conv3x3(specs[-1].channels, width, norm), nn.Dropout(dropout), nn.Conv2d(width, channels, 1))

    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        """Predict [B, channels, height, width]."""
        return resize(self.layers(features[-1].tensor), size)
