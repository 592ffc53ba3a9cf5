"""The residual networks of torchvision."""

from collections import OrderedDict
from typing import Literal, get_args

import torchvision
from torch import nn

from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.encoders.weights import imagenet_normalisation, load_weights
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import FeatureSpec

ResNetName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


class ResNet(Encoder):
    """ResNet, ResNeXt and wide ResNet.

    Five stages: the stem without its max-pooling, then the four layers, the first of them behind the max-pooling: strides
    2, 4, 8, 16, 32. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Xie et al., "Aggregated Residual
    Transformations for Deep Neural Networks", CVPR 2017; Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016.

    Args:
        name: the network.
        in_channels: 3 for RGB, 1 for grey images (a first convolution with one channel).
        weights: one of torchvision's weights ("IMAGENET1K_V1", "DEFAULT"), downloaded on first use, or the path of a
            state_dict file of torchvision's network; null starts from random weights. In both, RGB weights of the first
            convolution are summed for grey images.
        normalize: take ImageNet's mean out of the image in 0..1 and divide by its standard deviation.
        dilated: the last two stages keep stride 8 with dilated convolutions, for dense tasks (Chen et al., "Rethinking
            Atrous Convolution for Semantic Image Segmentation", 2017); resnet50 and larger.

    Raises:
        ConfigError: unknown name, dilation of a small network, or weights that are missing, broken or another network's.
    """

    def __init__(
        self,
        name: ResNetName = "resnet18",
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        dilated: bool = False,
    ) -> None:
        if name not in get_args(ResNetName):
            raise ConfigError(f"model.encoder.init_args.name is '{name}', expected one of {list(get_args(ResNetName))}")
        if dilated and name in ("resnet18", "resnet34"):
            raise ConfigError(f"model.encoder.init_args.dilated: {name} has no dilated form, take resnet50 or larger, or false")
        trunk = torchvision.models.get_model(
            name, weights=None, num_classes=1, replace_stride_with_dilation=[False, dilated, dilated]
        )
        expansion = trunk.fc.in_features // 512
        del trunk.fc
        if in_channels != 3:
            trunk.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
        load_weights(trunk, name, weights, first="conv1.weight", classifier=["fc"])
        bodies: list[OrderedDict[str, nn.Module]] = [
            OrderedDict(conv1=trunk.conv1, bn1=trunk.bn1, relu=trunk.relu),
            OrderedDict(maxpool=trunk.maxpool, layer1=trunk.layer1),
            OrderedDict(layer2=trunk.layer2),
            OrderedDict(layer3=trunk.layer3),
            OrderedDict(layer4=trunk.layer4),
        ]
        channels = [64, *(expansion * width for width in (64, 128, 256, 512))]
        strides = [2, 4, 8, 8, 8] if dilated else [2, 4, 8, 16, 32]
        stages = [
            Stage(nn.Sequential(body), FeatureSpec(width, stride))
            for body, width, stride in zip(bodies, channels, strides, strict=True)
        ]
        super().__init__(stages, in_channels, *(imagenet_normalisation(in_channels) if normalize else (0.0, 1.0)))
