"""IMTL-G."""

import numpy as np
import torch
from torch import Tensor

from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.equal_products import equal_products
from mtl_lightning.weighting.solvers.units import unit_gramian

SMALLEST_SUM = 1e-3
"""Of the weights, by the sum of their absolute values, that they are still divided by."""


class IMTLG(GradientWeighting):
    """Impartial multi-task learning, gradients (Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang, ICLR 2021).

    The direction projects equally on every unit gradient; the sum of the weights is 1: with the unit gradients' Gramian C,
    weights are proportional to (C^-1 1)_i / |g_i|. They may be negative. Heads learn from their own unweighted losses, as
    in the paper. Together with IMTL-L it is IMTL.

    Where gradients depend on each other, the projections are equal in the sense of least squares; where nothing is left, as
    for exactly opposite gradients, all weights are 0. A zero gradient has weight 0. Where the weights' sum is negative, which
    would turn the common descent into ascent, or below a thousandth of the sum of their absolute values, that sum is
    made 1 instead.
    """

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """Equal projections."""
        cosines, norms = unit_gramian(gramian.numpy())
        combination = equal_products(cosines)
        if not combination.any():
            return torch.zeros_like(gramian[0])
        # By the shortest, so that no sum overflows.
        weights = combination * (norms[cosines.diagonal() > 0].min() / norms)
        total, size = float(weights.sum()), float(np.abs(weights).sum())
        return torch.from_numpy(weights / (total if total > SMALLEST_SUM * size else size))
