"""DualProj."""

import torch
from torch import Tensor

from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.dual_cone import project


class DualProj(GradientWeighting):
    """The mean gradient, projected (Lopez-Paz, Ranzato: Gradient Episodic Memory for Continual Learning, NeurIPS 2017).

    The direction is the one closest to the mean of the gradients that conflicts with no task: weights
    v = argmin v^T G v over v >= 1/P. Without conflict with the mean they are 1/P each; every weight is 1/P or more. A zero
    gradient has weight 1/P. Heads learn from their own unweighted losses. The paper's margin is 0 here, and all tasks are in
    the mean, as in Quinton and Rey (Jacobian Descent for Multi-Objective Optimization, 2024).
    """

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """The projection's weights."""
        tasks = len(gramian)
        return project(gramian, torch.full((1, tasks), 1 / tasks, dtype=gramian.dtype))[0]
