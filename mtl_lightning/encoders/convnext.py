"""The ConvNeXt networks of torchvision."""

from typing import Literal, get_args

from mtl_lightning.encoders.base import ImageEncoder, Stage
from mtl_lightning.encoders.trunk import build_trunk, cut
from mtl_lightning.encoders.weights import imagenet_normalisation, load_weights
from mtl_lightning.features import FeatureSpec

ConvNeXtName = Literal[
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "convnext_large",
]
STRIDES = (4, 8, 16, 32)


class ConvNeXt(ImageEncoder):
    """ConvNeXt after Liu et al., "A ConvNet for the 2020s", CVPR 2022.

    Four stages: the stem of 4 x 4 patches with the first group of blocks, then the other groups, each behind its
    downsampling: strides 4, 8, 16, 32. Images must be at least 32 x 32 (4 x 4 for the first stage alone). The layer norm that
    torchvision has behind its global pooling belongs to the classifier and is not part of it.

    Args:
        name: the network.
        in_channels: 3 for RGB, 1 for grey images (a first convolution with one channel).
        weights: one of torchvision's weights ("IMAGENET1K_V1", "DEFAULT"), downloaded on first use, or the path of a
            state_dict file of torchvision's network or of a checkpoint of ours; null starts from random weights. RGB weights
            of the first convolution are summed for grey images.
        normalize: take ImageNet's mean out of the image in 0..1 and divide by its standard deviation.
        stages: how many of the stages, from the first on; null takes all.
        strict: whether missing and unexpected tensors in the weights are an error.

    Raises:
        ConfigError: unknown name, more stages than there are, or weights that are missing, broken or another network's.
    """

    def __init__(
        self,
        name: ConvNeXtName = "convnext_tiny",
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        stages: int | None = None,
        strict: bool = True,
    ) -> None:
        trunk = build_trunk(name, get_args(ConvNeXtName), in_channels, "features.0.0")
        parts = cut(trunk.features, (0, 2, 4, 6))  # type: ignore[arg-type]
        channels = [part[-1][-1].layer_scale.shape[0] for part in parts]  # type: ignore[union-attr, index]
        made = [Stage(part, FeatureSpec(width, stride)) for part, width, stride in zip(parts, channels, STRIDES, strict=True)]
        mean, std = imagenet_normalisation(in_channels) if normalize else (0.0, 1.0)
        super().__init__(made, in_channels, mean, std, smallest=STRIDES, take=stages)
        load_weights(trunk, name, weights, first="features.0.0.weight", classifier=["classifier"], strict=strict, encoder=self)
