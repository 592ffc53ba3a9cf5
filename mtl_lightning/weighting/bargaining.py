"""What Nash-MTL and FairGrad have in common: one equation, and steps that have no solution of it."""

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.fair import fair


class Bargaining(GradientWeighting):
    """Weights that solve G w = w^(-1/alpha).

    Args:
        alpha: of the fairness; 1 is Nash's.
        max_norm: of the direction, > 0: the weights are brought down until it is kept; None leaves them.
    """

    pareto_stationary: bool = False
    """Whether the last Gramian had no solution."""
    without_solution: Tensor
    residual: float = 0.0
    """Of the last solve, the largest |w^(1/alpha) * (G w) - 1|; infinite without a solution."""

    def __init__(self, alpha: float, max_norm: float | None) -> None:
        super().__init__()
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
        """The solution."""
        found = fair(gramian.numpy(), self.alpha, self.max_norm)
        self.pareto_stationary, self.residual = found.stationary, found.residual
        if self.training and found.stationary:
            self.without_solution += 1
        return torch.from_numpy(found.weights)
