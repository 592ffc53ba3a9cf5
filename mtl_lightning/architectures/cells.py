"""What is done to each cell of a map and to the class token alike, and maps brought to the size of the next level."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_lightning.features import Features, FeatureSpec


def joined(features: Features) -> Tensor:
    """The map [B, C, h, w]; with a class token all cells side by side and the token behind them, [B, C, 1, h * w + 1]."""
    if features.token is None:
        return features.tensor
    return torch.cat([features.tensor.flatten(2), features.token.unsqueeze(2)], 2).unsqueeze(2)


def parted(tensor: Tensor, like: Features) -> Features:
    """The opposite of :func:`joined`, for any number of channels.

    Args:
        tensor: as :func:`joined` gives it.
        like: has the height, width and validity.
    """
    if like.token is None:
        return like.like(tensor)
    cells = like.like(tensor[:, :, 0, :-1].reshape(-1, tensor.shape[1], *like.tensor.shape[-2:]))
    return Features(cells.tensor, cells.valid, tensor[:, :, 0, -1])


def fit(tensor: Tensor, size: torch.Size) -> Tensor:
    """Channels, rows and columns cut off at the end, or filled up with zeros, to ``size`` [C, h, w]."""
    if tensor.shape[1:] == size:
        return tensor
    return F.pad(tensor, [gap for side in (3, 2, 1) for gap in (0, size[side - 1] - tensor.shape[side])])


def maximum(features: Features, spec: FeatureSpec, after: FeatureSpec, size: torch.Size) -> Tensor:
    """A map of values >= 0 at the resolution of the next level: the largest of each of its cells.

    Pooling by the ratio of the strides, not by that of the sizes, looks at the same cells however much padding follows.

    Args:
        features: of a level; 0 where there is padding.
        spec: of that level.
        after: of the next.
        size: the height and width of that.
    """
    ratio, rest = divmod(after.stride, spec.stride)
    if rest:
        return F.interpolate(features.tensor, size=size, mode="bilinear", align_corners=False)
    pooled = F.max_pool2d(features.tensor, ratio, ceil_mode=True) if ratio > 1 else features.tensor
    return fit(pooled, torch.Size([pooled.shape[1], *size]))


def average(features: Features, spec: FeatureSpec, after: FeatureSpec, size: torch.Size) -> Tensor:
    """The same for values of any sign, with the mean of each cell's picture part; arguments as in :func:`maximum`."""
    ratio, rest = divmod(after.stride, spec.stride)
    if rest:
        return F.interpolate(features.tensor, size=size, mode="bilinear", align_corners=False)
    pooled = features.tensor
    if ratio > 1:
        pooled = F.avg_pool2d(pooled, ratio, ceil_mode=True)
        if features.valid is not None:
            share = F.avg_pool2d((features.valid > 0).to(pooled.dtype), ratio, ceil_mode=True)
            pooled = pooled / share.clamp_min(1 / ratio**2)
    return fit(pooled, torch.Size([pooled.shape[1], *size]))
