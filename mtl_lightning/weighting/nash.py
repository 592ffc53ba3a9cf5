"""Nash-MTL."""

from typing import Literal

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.fair import fair


class NashMTL(GradientWeighting):
    """The Nash bargaining solution (Navon et al.: Multi-Task Learning as a Bargaining Game, ICML 2022).

    The weights a > 0 solve G a = 1 / a: no direction of the same norm has a larger product of the tasks' improvements. Their
    scale: a_t is inverse to the norm of task t's gradient, so that the scale of a loss does not matter, and the direction J^T a
    always has norm sqrt(P) for P tasks; ``max_norm`` brings the weights down until it has that norm, 1 by default as in the
    official code. Heads are trained with the weighted loss.

    No solution exists where some convex combination of the gradients vanishes, as for two opposite ones: then
    :attr:`pareto_stationary` is True and the weights are those of that combination, sum 1. A task whose gradient is 0
    beside the others' gets weight 0 and does not enter the equation.

    What differs: solved exactly by Newton's method, |a * (G a) - 1| <= 1e-9 where the smallest eigenvalue of the unit-diagonal
    Gramian is at least 1e-6, not by a fixed number of convex-concave rounds; the official code divides G by its Frobenius norm
    before (which multiplies a by the root of that norm) and its ``max_norm`` clips the shared gradient alone, ours the weights
    and so the heads' share too.

    Args:
        max_norm: of the direction, > 0; None leaves sqrt(P).
    """

    heads: Literal["weighted", "unweighted"] = "weighted"
    pareto_stationary: bool = False
    """Whether the last Gramian had no solution."""
    without_solution: Tensor
    residual: float = 0.0
    """Of the last solve, the largest |a * (G a) - 1|; infinite without a solution."""

    def __init__(self, max_norm: float | None = 1.0) -> None:
        super().__init__()
        if max_norm is not None and not max_norm > 0:
            raise ConfigError(f"model.weighting.init_args.max_norm is {max_norm}, expected > 0 or null")
        self.max_norm = max_norm
        self.register_buffer("without_solution", torch.zeros((), dtype=torch.long))

    def notes(self) -> dict[str, float]:
        """How many steps had no solution, once there is one."""
        count = int(self.without_solution)
        return {"gradient/pareto_stationary": float(count)} if count else {}

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """The bargaining solution."""
        found = fair(gramian.numpy(), 1.0, self.max_norm)
        self.pareto_stationary, self.residual = found.stationary, found.residual
        if self.training and found.stationary:
            self.without_solution += 1
        return torch.from_numpy(found.weights)
