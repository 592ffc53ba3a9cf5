"""The MobileNets of torchvision, versions 2 and 3."""

from typing import Literal, get_args

from mtl_lightning.encoders.base import ImageEncoder
from mtl_lightning.encoders.trunk import as_stages, build_trunk, cut
from mtl_lightning.encoders.weights import imagenet_normalisation, load_weights

MobileNetName = Literal[
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
]

STARTS = {
    "mobilenet_v2": (0, 2, 4, 7, 14),
    "mobilenet_v3_small": (0, 1, 2, 4, 9),
    "mobilenet_v3_large": (0, 2, 4, 7, 13),
}
"""Which of torchvision's layers begin a stage."""


class MobileNet(ImageEncoder):
    """MobileNetV2 and MobileNetV3.

    Five stages, each but the first beginning where the map gets smaller: strides 2, 4, 8, 16, 32; the last one ends with the
    1x1 convolution before the pooling. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018;
    Howard et al., "Searching for MobileNetV3", ICCV 2019.

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
        name: MobileNetName = "mobilenet_v3_large",
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        stages: int | None = None,
        strict: bool = True,
    ) -> None:
        trunk = build_trunk(name, get_args(MobileNetName), in_channels, "features.0.0")
        made = as_stages(cut(trunk.features, STARTS[name]), (2, 4, 8, 16, 32))  # type: ignore[arg-type]
        mean, std = imagenet_normalisation(in_channels) if normalize else (0.0, 1.0)
        super().__init__(made, in_channels, mean, std, take=stages)
        load_weights(trunk, name, weights, first="features.0.0.weight", classifier=["classifier"], strict=strict, encoder=self)
