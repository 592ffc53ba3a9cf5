"""The EfficientNets of torchvision, both versions."""

from typing import Literal, get_args

from mtl_lightning.encoders.base import ImageEncoder
from mtl_lightning.encoders.trunk import as_stages, build_trunk, cut
from mtl_lightning.encoders.weights import imagenet_normalisation, load_weights

EfficientNetName = Literal[
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_s",
    "efficientnet_v2_m",
    "efficientnet_v2_l",
]


class EfficientNet(ImageEncoder):
    """EfficientNet and EfficientNetV2.

    Five stages, each but the first beginning where the map gets smaller: strides 2, 4, 8, 16, 32; the last one ends with the
    1x1 convolution before the pooling. Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    ICML 2019; "EfficientNetV2: Smaller Models and Faster Training", ICML 2021.

    Args:
        name: the network.
        in_channels: 3 for RGB, 1 for grey images (a first convolution with one channel).
        weights: one of torchvision's weights ("IMAGENET1K_V1", "DEFAULT"), downloaded on first use, or the path of a
            state_dict file of torchvision's network or of a checkpoint of ours; null starts from random weights. RGB weights
            of the first convolution are summed for grey images.
        normalize: take the mean that the network's weights were trained with (ImageNet's; 0.5 for efficientnet_v2_l) out of the
            image in 0..1 and divide by the standard deviation.
        stages: how many of the stages, from the first on; null takes all.
        strict: whether missing and unexpected tensors in the weights are an error.

    Raises:
        ConfigError: unknown name, more stages than there are, or weights that are missing, broken or another network's.
    """

    def __init__(
        self,
        name: EfficientNetName = "efficientnet_b0",
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        stages: int | None = None,
        strict: bool = True,
    ) -> None:
        trunk = build_trunk(name, get_args(EfficientNetName), in_channels, "features.0.0")
        # In both versions the fifth and later groups of blocks follow one that does not shrink the map.
        made = as_stages(cut(trunk.features, (0, 2, 3, 4, 6)), (2, 4, 8, 16, 32))  # type: ignore[arg-type]
        # The largest network's weights alone were trained on -1..1.
        mean, std = (0.5, 0.5) if name == "efficientnet_v2_l" else imagenet_normalisation(in_channels)
        super().__init__(made, in_channels, *((mean, std) if normalize else (0.0, 1.0)), take=stages)
        load_weights(trunk, name, weights, first="features.0.0.weight", classifier=["classifier"], strict=strict, encoder=self)
