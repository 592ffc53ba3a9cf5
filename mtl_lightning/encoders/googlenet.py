"""GoogLeNet (Inception v1) of torchvision."""

from collections import OrderedDict
from typing import Literal

import torchvision
from torch import nn

from mtl_lightning.encoders.base import ImageEncoder, Stage
from mtl_lightning.encoders.weights import load_weights
from mtl_lightning.features import FeatureSpec

LAYERS = (
    ("conv1",),
    ("maxpool1", "conv2", "conv3"),
    ("maxpool2", "inception3a", "inception3b"),
    ("maxpool3", "inception4a", "inception4b", "inception4c", "inception4d", "inception4e"),
    ("maxpool4", "inception5a", "inception5b"),
)
CHANNELS = (64, 192, 480, 832, 1024)


class GoogLeNet(ImageEncoder):
    """GoogLeNet after Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, without its auxiliary classifiers.

    Five stages, each after the first begins with its max-pooling: strides 2, 4, 8, 16, 32. Images must be at least 15 x 15.
    Like torchvision's it has batch norm, and 3x3 in place of 5x5 convolutions.

    Args:
        in_channels: 3 for RGB, 1 for grey images (a first convolution with one channel).
        weights: one of torchvision's weights ("IMAGENET1K_V1", "DEFAULT"), downloaded on first use, or the path of a
            state_dict file of torchvision's network or of a checkpoint of ours; null starts from random weights. RGB weights
            of the first convolution are summed for grey images.
        normalize: bring the image from 0..1 to -1..1. These weights were trained so, and not with ImageNet's mean and
            standard deviation (torchvision's network undoes those with its ``transform_input``).
        stages: how many of the stages, from the first on; null takes all.
        strict: whether missing and unexpected tensors in the weights are an error.

    Raises:
        ConfigError: more stages than there are, or weights that are missing, broken or another network's.
    """

    def __init__(
        self,
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        stages: int | None = None,
        strict: bool = True,
    ) -> None:
        trunk = torchvision.models.GoogLeNet(num_classes=1, aux_logits=False, init_weights=False)
        del trunk.fc
        if in_channels != 3:
            trunk.conv1.conv = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        # torchvision's own initialisation draws truncated normals, which takes seconds.
        for module in trunk.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        made = [
            Stage(nn.Sequential(OrderedDict((name, getattr(trunk, name)) for name in names)), FeatureSpec(width, 2**depth))
            for depth, (names, width) in enumerate(zip(LAYERS, CHANNELS, strict=True), start=1)
        ]
        mean, std = (0.5, 0.5) if normalize else (0.0, 1.0)
        super().__init__(made, in_channels, mean, std, smallest=(1, 3, 7, 15, 15), take=stages)
        load_weights(trunk, "googlenet", weights, "conv1.conv.weight", ["fc", "aux1", "aux2"], strict=strict, encoder=self)
