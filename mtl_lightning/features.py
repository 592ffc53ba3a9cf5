"""What travels from encoder stages to heads: a tensor, what it looks like, and which of it is padding."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Layout = Literal["map", "tokens", "vector"]


@dataclass(frozen=True)
class FeatureSpec:
    """The shape a stage promises.

    Attributes:
        channels: size of dimension 1.
        stride: input pixels per cell along each side (1 for the input itself).
        layout: ``map`` is [B, C, h, w], ``tokens`` [B, N, C], ``vector`` [B, C].
        token: whether a class token comes with it.
    """

    channels: int
    stride: int = 1
    layout: Layout = "map"
    token: bool = False


@dataclass
class Features:
    """A feature tensor with its validity.

    A text is a map of height 1: its words stand side by side, so that poolings, heads and architectures are those of pictures.

    Attributes:
        tensor: [B, C, h, w] for maps.
        valid: [B, 1, h, w] in 0..1, the share of each cell that is picture and not padding; None if all is picture.
        token: [B, C], a transformer's summary of the whole picture; None from others.
    """

    tensor: Tensor
    valid: Tensor | None = None
    token: Tensor | None = None

    def like(self, tensor: Tensor) -> "Features":
        """The same rows in a new tensor; the validity is shrunk to the new height and width, and what is padding alone is 0.

        So padding looks to the next convolution like the border of a picture, and not like what biases have made of it.
        """
        if self.valid is None:
            return Features(tensor, token=self.token)
        valid = self.valid
        if valid.shape[-2:] != tensor.shape[-2:]:
            valid = F.adaptive_avg_pool2d(valid, (tensor.shape[-2], tensor.shape[-1]))
        return Features(tensor * (valid > 0), valid, self.token)

    def take(self, rows: Tensor) -> "Features":
        """Some of the rows: int64 [N]."""
        parts = [None if part is None else part[rows] for part in (self.valid, self.token)]
        return Features(self.tensor[rows], *parts)


def pool(features: Features, size: int = 1) -> Tensor:
    """Average a map over ``size`` x ``size`` regions, padding left out.

    Args:
        features: a map [B, C, h, w].
        size: regions along each side; 1 is global average pooling, more keeps coarse positions (for boxes).

    Returns:
        [B, C * size * size].
    """
    if features.valid is None:
        return F.adaptive_avg_pool2d(features.tensor, size).flatten(1)
    valid, weighted = features.valid, features.tensor * features.valid
    if size == 1:
        return (weighted.sum((2, 3)) / valid.sum((2, 3)).clamp_min(1e-6)).flatten(1)
    # The regions are those of each picture, which lies at the top left: what a region sees depends on no other picture.
    heights, widths = (valid > 0).any(3).sum(2).flatten().tolist(), (valid > 0).any(2).sum(2).flatten().tolist()
    rows = []
    for row, (height, width) in enumerate(zip(heights, widths, strict=True)):
        part = (slice(row, row + 1), slice(None), slice(max(1, height)), slice(max(1, width)))
        shares = F.adaptive_avg_pool2d(valid[part], size)
        rows.append(F.adaptive_avg_pool2d(weighted[part], size) / shares.clamp_min(1e-6))
    return torch.cat(rows).flatten(1)
