"""CAGrad."""

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.scaling import scaled
from mtl_lightning.weighting.solvers.simplex import averse


class CAGrad(GradientWeighting):
    """Conflict-averse gradient descent (Liu, Liu, Jin, Stone, Liu: Conflict-Averse Gradient Descent, NeurIPS 2021).

    With g_0 the mean gradient, the direction d maximises the least g_t . d over |d - g_0| <= c |g_0|. It is
    g_0 + c |g_0| g_w / |g_w|, where w minimises g_w . g_0 + c |g_0| |g_w| over the simplex, so task t's weight is
    1/P + c |g_0| w_t / |g_w|. Their scale is that of the mean, times 1 + c at most (the official code then multiplies by the
    number of tasks). c = 0 is the mean; from c = 1 on no task gets worse. Heads are trained with their own loss.

    A task whose gradient is 0 beside the others' would hold the least g_t . d at 0; it gets weight 0, and the others go on as
    if it were absent. Where g_w vanishes (Pareto stationary) or g_0 does, the weights stay finite: g_w / |g_w| becomes the limit
    that keeps d in the ball, or 0.

    What differs: solved exactly by an active-set method, and without the official code's small constants in the denominators.

    Args:
        c: radius of the ball in units of |g_0|, >= 0. The official scripts for Cityscapes take 0.4 and 0.6.
        rescale: divide the weights by 1 + c^2, as the official code does by default and the paper does not.
    """

    def __init__(self, c: float = 0.4, rescale: bool = False) -> None:
        super().__init__()
        if not 0 <= c < float("inf"):
            raise ConfigError(f"model.weighting.init_args.c is {c}, expected >= 0")
        self.c = c
        self.rescale = rescale

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """The mean and the least favoured."""
        problem = scaled(gramian.numpy())
        if not len(problem.kept):
            return torch.full((problem.size,), 1 / problem.size, dtype=torch.float64)
        weights = averse(problem, self.c) / (1 + self.c**2 if self.rescale else 1)
        return torch.from_numpy(problem.spread(weights))
