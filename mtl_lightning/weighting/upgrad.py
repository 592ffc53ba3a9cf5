"""UPGrad."""

import torch
from torch import Tensor

from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.dual_cone import project


class UPGrad(GradientWeighting):
    """Unconflicting projection of gradients (Quinton, Rey: Jacobian Descent for Multi-Objective Optimization, 2024).

    The direction is the mean of the projections of each gradient g_i on the dual cone {d: g_j . d >= 0 for all j}, so it
    conflicts with no task: weights (1/P) sum_i v_i, v_i = argmin v^T G v over v >= e_i. Without conflict they are 1/P each, the
    mean of the gradients; every weight is 1/P or more. They are found exactly, whatever the conflict. A zero gradient has
    weight 1/P. Heads learn from their own unweighted losses.
    """

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """Mean of the projections' weights."""
        tasks = len(gramian)
        return project(gramian, torch.eye(tasks, dtype=gramian.dtype)).mean(0)
