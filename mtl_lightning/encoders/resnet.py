"""The residual networks of torchvision."""

from collections import OrderedDict
from typing import Literal, get_args

from torch import nn

from mtl_lightning.encoders.base import ImageEncoder, Stage
from mtl_lightning.encoders.trunk import build_trunk, out_channels
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

LAYERS = (("conv1", "bn1", "relu"), ("maxpool", "layer1"), ("layer2",), ("layer3",), ("layer4",))


class ResNet(ImageEncoder):
    """ResNet, ResNeXt and wide ResNet.

    Five stages: the stem without its max-pooling, then the four layers, the first of them behind the max-pooling: strides
    2, 4, 8, 16, 32. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Xie et al., "Aggregated Residual
    Transformations for Deep Neural Networks", CVPR 2017; Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016.

    Args:
        name: the network.
        in_channels: 3 for RGB, 1 for grey images (a first convolution with one channel).
        weights: one of torchvision's weights ("IMAGENET1K_V1", "DEFAULT"), downloaded on first use, or the path of a
            state_dict file of torchvision's network or of a checkpoint of ours; null starts from random weights. RGB weights
            of the first convolution are summed for grey images.
        normalize: take ImageNet's mean out of the image in 0..1 and divide by its standard deviation.
        dilated: the last two stages keep stride 8 with dilated convolutions, for dense tasks (Chen et al., "Rethinking
            Atrous Convolution for Semantic Image Segmentation", 2017); resnet50 and larger.
        stages: how many of the stages, from the first on; null takes all.
        strict: whether missing and unexpected tensors in the weights are an error.

    Raises:
        ConfigError: unknown name, dilation of a small network, more stages than there are, or weights that are missing, broken
            or another network's.
    """

    def __init__(
        self,
        name: ResNetName = "resnet18",
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        dilated: bool = False,
        stages: int | None = None,
        strict: bool = True,
    ) -> None:
        if dilated and name in ("resnet18", "resnet34"):
            raise ConfigError(f"model.encoder.init_args.dilated: {name} has no dilated form, take resnet50 or larger, or false")
        trunk = build_trunk(
            name, get_args(ResNetName), in_channels, "conv1", replace_stride_with_dilation=[False, dilated, dilated]
        )
        expansion = out_channels(trunk.layer4) // 512  # type: ignore[arg-type]
        parts = [nn.Sequential(OrderedDict((layer, trunk.get_submodule(layer)) for layer in part)) for part in LAYERS]
        channels = [64, *(expansion * width for width in (64, 128, 256, 512))]
        strides = [2, 4, 8, 8, 8] if dilated else [2, 4, 8, 16, 32]
        made = [Stage(part, FeatureSpec(width, stride)) for part, width, stride in zip(parts, channels, strides, strict=True)]
        mean, std = imagenet_normalisation(in_channels) if normalize else (0.0, 1.0)
        super().__init__(made, in_channels, mean, std, take=stages)
        load_weights(trunk, name, weights, "conv1.weight", ["fc"], strict=strict, encoder=self)
