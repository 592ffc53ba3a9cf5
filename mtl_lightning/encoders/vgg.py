"""The VGG networks in torchvision's layout."""

from typing import Literal, get_args

from torch import nn

from mtl_lightning.encoders.base import ImageEncoder, Stage
from mtl_lightning.encoders.weights import imagenet_normalisation, load_weights
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import FeatureSpec

VGGName = Literal["vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


class VGG(ImageEncoder):
    """VGG after Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.

    Five stages, each ends with its max-pooling: strides 2, 4, 8, 16, 32. Images must be at least 32 x 32 (less
    for fewer stages). The layers are built here and not by torchvision, whose network comes with a classifier of 120 million
    weights.

    Args:
        name: depth, with or without batch norm.
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
        name: VGGName = "vgg16_bn",
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        stages: int | None = None,
        strict: bool = True,
    ) -> None:
        if name not in get_args(VGGName):
            raise ConfigError(f"model.encoder.init_args.name is '{name}', expected one of {list(get_args(VGGName))}")
        blocks = _blocks(CONVOLUTIONS[name.removesuffix("_bn")], in_channels, norm=name.endswith("_bn"))
        trunk = nn.ModuleDict({"features": nn.Sequential(*(layer for block in blocks for layer in block))})
        made = [
            Stage(nn.Sequential(*block), FeatureSpec(width, 2**depth))
            for depth, (block, width) in enumerate(zip(blocks, WIDTHS, strict=True), start=1)
        ]
        mean, std = imagenet_normalisation(in_channels) if normalize else (0.0, 1.0)
        super().__init__(made, in_channels, mean, std, smallest=(2, 4, 8, 16, 32), take=stages)
        load_weights(trunk, name, weights, "features.0.weight", ["classifier"], strict=strict, encoder=self)


def _blocks(convolutions: tuple[int, ...], in_channels: int, norm: bool) -> list[list[nn.Module]]:
    blocks, previous = [], in_channels
    for count, width in zip(convolutions, WIDTHS, strict=True):
        layers: list[nn.Module] = []
        for _ in range(count):
            convolution = nn.Conv2d(previous, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            layers += [convolution, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU(inplace=True)]
            previous = width
        blocks.append([*layers, nn.MaxPool2d(2)])
    return blocks
