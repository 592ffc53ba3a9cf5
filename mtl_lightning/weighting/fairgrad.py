"""FairGrad."""

from typing import Literal

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.fair import fair


class FairGrad(GradientWeighting):
    """Fair resource allocation (Ban, Ji: Fair Resource Allocation in Multi-Task Learning, ICML 2024).

    The weights w > 0 solve G w = w^(-1/alpha): the rate at which task t improves is w_t^(-1/alpha). alpha = 1 is Nash-MTL,
    towards 0 all tasks weigh 1, large alpha makes all rates equal. Their scale: all losses times k multiply w by
    k^(-2 alpha / (1 + alpha)). Heads are trained with their own loss, as in the official code.

    Without a solution (some convex combination of the gradients vanishes) :attr:`pareto_stationary` is True and the weights are
    those of that combination, sum 1. A task whose gradient is 0 beside the others' gets weight 0 and does not enter the
    equation.

    What differs: solved by Newton's method, not by least squares with a limit on its rounds. The official code also clips the
    shared gradient to norm 1 (``max_norm: 1``). Its alpha is 1 by default; its scripts for QM9, CelebA and MetaWorld take 2.

    Args:
        alpha: of the fairness, from 0.1 to 10.
        max_norm: of the direction, > 0: the weights are brought down until it is kept; None leaves them.
    """

    heads: Literal["weighted", "unweighted"] = "unweighted"
    pareto_stationary: bool = False
    """Whether the last Gramian had no solution."""
    without_solution: Tensor
    residual: float = 0.0
    """Of the last solve, the largest |w^(1/alpha) * (G w) - 1|; infinite without a solution."""

    def __init__(self, alpha: float = 1.0, max_norm: float | None = None) -> None:
        super().__init__()
        if not 0.1 <= alpha <= 10:
            raise ConfigError(f"model.weighting.init_args.alpha is {alpha}, expected 0.1 to 10")
        if max_norm is not None and not max_norm > 0:
            raise ConfigError(f"model.weighting.init_args.max_norm is {max_norm}, expected > 0 or null")
        self.alpha = alpha
        self.max_norm = max_norm
        self.register_buffer("without_solution", torch.zeros((), dtype=torch.long))

    def notes(self) -> dict[str, float]:
        """How many steps had no solution, once there is one."""
        count = int(self.without_solution)
        return {"gradient/pareto_stationary": float(count)} if count else {}

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """The fair allocation."""
        found = fair(gramian.numpy(), self.alpha, self.max_norm)
        self.pareto_stationary, self.residual = found.stationary, found.residual
        if self.training and found.stationary:
            self.without_solution += 1
        return torch.from_numpy(found.weights)
