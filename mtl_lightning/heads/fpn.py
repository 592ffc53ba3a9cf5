"""The feature pyramid network as a dense head."""

from collections.abc import Sequence

from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.heads.base import Head, need_pyramid
from mtl_lightning.heads.blocks import Norm, check_options, conv3x3, resize


class FPN(Head):
    """Dense predictions from all maps, each enriched by the coarser ones.

    After T.-Y. Lin et al., "Feature pyramid networks for object detection", CVPR 2017, and A. Kirillov et al., "Panoptic
    feature pyramid networks", CVPR 2019: 1x1 convolutions bring all maps to one width, each coarser one is resized and added
    to the next finer, a 3x3 convolution smooths each sum, and all are resized to the finest map and added. Ours resizes in one
    step where the latter doubles again and again with a convolution each.

    Args:
        specs: the feature pyramid, finest first.
        channels: outputs per pixel.
        width: channels of every level (the papers: 256 and 128).
        dropout: share of the joined values left out in training, in [0, 1).
        norm: of the 3x3 convolutions: ``batch``, ``layer`` (over the channels of each cell) or ``none``.

    Raises:
        ConfigError: several maps of one stride, or a number out of its range.
    """

    dense = True

    def __init__(
        self, specs: Sequence[FeatureSpec], channels: int, width: int = 64, dropout: float = 0.1, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        need_pyramid(type(self).__name__, specs)
        if width < 1:
            raise ConfigError(f"head {type(self).__name__}: width is {width}, expected 1 or more")
        check_options(type(self).__name__, dropout, norm, width)
        self.lateral = nn.ModuleList(nn.Conv2d(spec.channels, width, 1) for spec in specs)
        self.smooth = nn.ModuleList(conv3x3(width, width, norm) for _ in specs)
        self.dropout = nn.Dropout(dropout)
        self.predict = nn.Conv2d(width, channels, 1)

    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        """Predict [B, channels, height, width]; padding is set to 0 at every level."""
        finest = (features[0].tensor.shape[-2], features[0].tensor.shape[-1])
        above: Tensor | None = None
        joined: Tensor | None = None
        for feature, lateral, smooth in zip(reversed(features), reversed(self.lateral), reversed(self.smooth), strict=True):
            level = lateral(feature.tensor)
            if above is not None:
                level = level + resize(above, (level.shape[-2], level.shape[-1]))
            above = feature.like(level).tensor
            smoothed = resize(feature.like(smooth(above)).tensor, finest)
            joined = smoothed if joined is None else joined + smoothed
        return resize(self.predict(self.dropout(joined)), size)
