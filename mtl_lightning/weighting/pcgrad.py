"""PCGrad."""

import numpy as np
import torch
from torch import Tensor

from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.orders import random_orders
from mtl_lightning.weighting.solvers.units import unit_gramian


class PCGrad(GradientWeighting):
    """Projecting conflicting gradients (Yu, Kumar, Gupta, Levine, Hausman, Finn: Gradient Surgery, NeurIPS 2020).

    Each gradient g_i meets the others in random order; where its present form conflicts with an original g_j, its part along
    g_j is taken out. The direction is the sum of what is left: without conflict every weight is 1, and each is 1 or more. All
    of it is a linear combination of the gradients whose coefficients follow from the Gramian. A zero gradient has weight 1
    and changes no other. Heads learn from their own unweighted losses.

    The orders depend on (seed, step) only, so that they are the same on all ranks and after a resume.

    Args:
        seed: of the orders.
    """

    step: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """Sum of the combinations that the gradients have become."""
        cosines, norms = unit_gramian(gramian.numpy())
        tasks = len(norms)
        orders = random_orders(tasks, self.seed, int(self.step))
        if self.training:
            self.step += 1
        # Row i: what g_i has become, in units of the unit gradients; and its products with them.
        mixed, products = np.diag(norms), norms[:, None] * cosines
        every = np.arange(tasks)
        for others in orders.T:
            removed = np.minimum(products[every, others], 0.0)
            mixed[every, others] -= removed
            products -= removed[:, None] * cosines[others]
        return torch.from_numpy(mixed.sum(0) / norms)
