"""ConFIG."""

import torch
from torch import Tensor

from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.equal_products import equal_products
from mtl_lightning.weighting.solvers.units import unit_gramian


class ConFIG(GradientWeighting):
    """Conflict-free inverse gradients (Liu, Chu, Thuerey: ConFIG, ICLR 2025).

    The direction u has the same positive cosine with every gradient, and the length sum_i g_i . u: with the unit gradients'
    Gramian C, b = C^+ 1, weights b_i / |g_i| * sum_j |g_j| (C b)_j / (b^T C b). Orthogonal gradients of one length get 1
    each. Weights may be negative. Where the gradients depend on each other, it is least squares. A zero gradient has weight
    0; so have all where no direction is left, as for exactly opposite gradients. Heads learn from their own unweighted losses.
    """

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """The combination of unit gradients, brought to length."""
        cosines, norms = unit_gramian(gramian.numpy())
        combination = equal_products(cosines)
        products = cosines @ combination
        if not combination.any():
            return torch.zeros_like(gramian[0])
        length = float((norms * products).sum() / (combination @ products))
        return torch.from_numpy(combination * (length / norms))
