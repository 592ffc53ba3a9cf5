"""The RegNets of torchvision."""

from typing import Literal, get_args

from torch import nn

from mtl_lightning.encoders.base import ImageEncoder
from mtl_lightning.encoders.trunk import as_stages, build_trunk
from mtl_lightning.encoders.weights import imagenet_normalisation, load_weights

RegNetName = Literal[
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_x_1_6gf",
    "regnet_x_3_2gf",
    "regnet_x_8gf",
    "regnet_x_16gf",
    "regnet_x_32gf",
    "regnet_y_400mf",
    "regnet_y_800mf",
    "regnet_y_1_6gf",
    "regnet_y_3_2gf",
    "regnet_y_8gf",
    "regnet_y_16gf",
    "regnet_y_32gf",
    "regnet_y_128gf",
]


class RegNet(ImageEncoder):
    """RegNetX and RegNetY (with squeeze and excitation).

    Five stages: the stem, then the four groups of blocks: strides 2, 4, 8, 16, 32. Radosavovic et al., "Designing Network
    Design Spaces", CVPR 2020.

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
        name: RegNetName = "regnet_y_400mf",
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        stages: int | None = None,
        strict: bool = True,
    ) -> None:
        trunk = build_trunk(name, get_args(RegNetName), in_channels, "stem.0")
        blocks: list[nn.Module] = list(trunk.trunk_output.children())  # type: ignore[union-attr]
        made = as_stages([trunk.stem, *blocks], (2, 4, 8, 16, 32))  # type: ignore[list-item]
        mean, std = imagenet_normalisation(in_channels) if normalize else (0.0, 1.0)
        super().__init__(made, in_channels, mean, std, take=stages)
        load_weights(trunk, name, weights, first="stem.0.weight", classifier=["fc"], strict=strict, encoder=self)
