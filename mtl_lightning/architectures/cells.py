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
    """Rows and columns cut off at the end, or their last repeated, to a height and width."""
    compiling = torch.compiler.is_compiling()
    for dim, length in ((2, size[0]), (3, size[1])):
        # While a graph is made for any size, lengths are not to be compared.
        if compiling or tensor.shape[dim] != length:
            places = torch.arange(length, device=tensor.device).clamp(max=tensor.shape[dim] - 1)
            tensor = tensor.index_select(dim, places)
    return tensor


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
    return fit(F.max_pool2d(_whole(features.tensor, ratio), ratio) if ratio > 1 else features.tensor, size)


def average(features: Features, spec: FeatureSpec, after: FeatureSpec, size: torch.Size) -> Tensor:
    """The same for values of any sign, with the mean of each cell's picture part; arguments as in :func:`maximum`."""
    ratio, rest = divmod(after.stride, spec.stride)
    if rest:
        return F.interpolate(features.tensor, size=size, mode="bilinear", align_corners=False)
    if ratio == 1:
        return fit(features.tensor, size)
    inside = features.tensor.new_ones(1, 1, *features.tensor.shape[-2:])
    if features.valid is not None:
        inside = inside * (features.valid > 0)
    share = F.avg_pool2d(_whole(inside, ratio), ratio)
    return fit(F.avg_pool2d(_whole(features.tensor, ratio), ratio) / share.clamp_min(1 / ratio**2), size)


def _whole(tensor: Tensor, ratio: int) -> Tensor:
    """With zeros at the end, so that pooling by the ratio drops nothing."""
    return F.pad(tensor, (0, ratio - 1, 0, ratio - 1))
