"""The densely connected networks of torchvision."""

import re
from collections import OrderedDict
from typing import Literal, get_args

from torch import nn

from mtl_lightning.encoders.base import ImageEncoder
from mtl_lightning.encoders.trunk import as_stages, build_trunk
from mtl_lightning.encoders.weights import imagenet_normalisation, load_weights

DenseNetName = Literal["densenet121", "densenet161", "densenet169", "densenet201"]

LAYERS = (
    ("conv0", "norm0", "relu0"),
    ("pool0", "denseblock1"),
    ("transition1", "denseblock2"),
    ("transition2", "denseblock3"),
    ("transition3", "denseblock4", "norm5"),
)


class DenseNet(ImageEncoder):
    """DenseNet after Huang et al., "Densely Connected Convolutional Networks", CVPR 2017.

    Five stages: the stem without its max-pooling, then the dense blocks, the first behind the max-pooling, the others behind
    their transition: strides 2, 4, 8, 16, 32. As in torchvision, batch norm and ReLU end the last block alone. Images must be
    at least 29 x 29 (less for fewer stages).

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
        name: DenseNetName = "densenet121",
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        stages: int | None = None,
        strict: bool = True,
    ) -> None:
        trunk = build_trunk(name, get_args(DenseNetName), in_channels, "features.conv0")
        layers = dict(trunk.features.named_children())  # type: ignore[union-attr, operator]
        parts = [nn.Sequential(OrderedDict((layer, layers[layer]) for layer in part)) for part in LAYERS]
        parts[-1].add_module("relu5", nn.ReLU(inplace=True))
        made = as_stages(parts, (2, 4, 8, 16, 32), _channels)
        mean, std = imagenet_normalisation(in_channels) if normalize else (0.0, 1.0)
        super().__init__(made, in_channels, mean, std, smallest=(1, 1, 5, 13, 29), take=stages)
        load_weights(trunk, name, weights, "features.conv0.weight", ["classifier"], strict=strict, encoder=self, rename=_modern)


def _channels(part: nn.Module) -> int:
    """A block's output is its input beside what each of its layers adds."""
    layers = [module for module in part.modules() if hasattr(module, "conv2")]
    if not layers:
        return int(part.conv0.out_channels)  # type: ignore[union-attr, arg-type]
    return int(layers[-1].norm1.num_features + layers[-1].conv2.out_channels)  # type: ignore[union-attr, operator]


def _modern(key: str) -> str:
    """Torchvision's own files are older than its names: ``norm.1`` for ``norm1``."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.", r"\1\2.", key)
