"""The Swin transformers of torchvision, both versions."""

from typing import Literal, get_args

from torch import nn
from torchvision.ops.misc import Permute

from mtl_lightning.encoders.base import ImageEncoder, Stage
from mtl_lightning.encoders.trunk import build_trunk, cut
from mtl_lightning.encoders.weights import imagenet_normalisation, load_weights
from mtl_lightning.features import FeatureSpec

SwinName = Literal["swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b"]


class Swin(ImageEncoder):
    """Swin transformer, versions 1 and 2.

    Four stages: the 4 x 4 patches with the first group of blocks, then the other groups, each behind its patch merging; the
    last ends with the network's layer norm: strides 4, 8, 16, 32. Inside a stage channels stand last, between the stages the
    maps are [B, C, h, w]. Images of any size from 4 x 4 on (rows and columns of half a patch are cut off, windows filled up).
    Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021; "Swin Transformer V2:
    Scaling Up Capacity and Resolution", CVPR 2022.

    Args:
        name: the network.
        in_channels: 3 for RGB, 1 for grey images (patches with one channel).
        weights: one of torchvision's weights ("IMAGENET1K_V1", "DEFAULT"), downloaded on first use, or the path of a
            state_dict file of torchvision's network or of a checkpoint of ours; null starts from random weights. RGB weights
            of the patches are summed for grey images.
        normalize: take ImageNet's mean out of the image in 0..1 and divide by its standard deviation.
        stages: how many of the stages, from the first on; null takes all.
        strict: whether missing and unexpected tensors in the weights are an error.

    Raises:
        ConfigError: unknown name, more stages than there are, or weights that are missing, broken or another network's.
    """

    def __init__(
        self,
        name: SwinName = "swin_t",
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        stages: int | None = None,
        strict: bool = True,
    ) -> None:
        trunk = build_trunk(name, get_args(SwinName), in_channels, "features.0.0")
        made: list[Stage] = []
        width = trunk.features[0][0].out_channels  # type: ignore[index, union-attr]
        for depth, part in enumerate(cut(trunk.features, (0, 2, 4, 6))):  # type: ignore[arg-type]
            before: list[nn.Module] = [Permute([0, 2, 3, 1])] if depth else []
            norm: list[nn.Module] = [trunk.norm] if depth == 3 else []  # type: ignore[list-item]
            body = nn.Sequential(*before, *part, *norm, Permute([0, 3, 1, 2]))
            made.append(Stage(body, FeatureSpec(width * 2**depth, 4 * 2**depth)))  # type: ignore[operator]
        mean, std = imagenet_normalisation(in_channels) if normalize else (0.0, 1.0)
        super().__init__(made, in_channels, mean, std, smallest=4, take=stages)
        load_weights(trunk, name, weights, "features.0.0.weight", ["head"], strict=strict, encoder=self)
