"""Multi-objective gradients with correction."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting, TaskInfo
from mtl_lightning.weighting.solvers import shares


class MoCo(GradientWeighting):
    """Multi-objective gradient correction (Fernando et al.: Mitigating Gradient Bias in Multi-Objective Learning, ICLR 2023).

    A tracked gradient a task, y_t = y_t + b * (g_t - y_t) with b = beta / k^beta_power from 0 on, and one projected gradient
    step a step for the min-norm weights, w = projection of w - c * (Y Y^T w + rho * w) on the simplex, c = gamma / k^gamma_power.
    The step is the sum of w_t * y_t. Weights sum to 1. Heads are trained with the unweighted losses.

    The defaults are those of the code the authors shared; their later code takes .1 for beta, gamma and rho and both powers 0,
    and the paper 5 / k^.5 for b on its toy. c is a step length in units of 1 / |g|^2: it wants to be smaller where gradients
    are large, or ``normalize``, which scales each gradient to the norm L_t before it is tracked, as the shared code does (which
    takes a softmax where the paper and this project on the simplex).

    Ours: k counts the steps in which the task (for c: any task) was present; an absent task's y, count and weight rest, and the
    present ones divide what they have together, of which they are given shares that sum to 1.

    Memory: one number a task and shared parameter, in every checkpoint.

    Args:
        beta: the first step of the tracking, more than 0, at most 1.
        beta_power: how fast it falls, 0 or more.
        gamma: the first step of the weights, more than 0.
        gamma_power: how fast it falls, 0 or more.
        rho: pull towards even weights, 0 or more.
        normalize: whether gradients are scaled to the norm of their loss.
    """

    needs_rows = True
    step: Tensor
    steps: Tensor
    shares: Tensor
    tracked: Tensor

    def __init__(
        self,
        beta: float = 0.5,
        beta_power: float = 0.5,
        gamma: float = 0.1,
        gamma_power: float = 0.5,
        rho: float = 0.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < beta <= 1:
            raise ConfigError(f"model.weighting.init_args.beta is {beta}, expected more than 0, at most 1")
        if not gamma > 0:
            raise ConfigError(f"model.weighting.init_args.gamma is {gamma}, expected > 0")
        for name, value in (("beta_power", beta_power), ("gamma_power", gamma_power), ("rho", rho)):
            if not value >= 0:
                raise ConfigError(f"model.weighting.init_args.{name} is {value}, expected 0 or more")
        self.beta = beta
        self.beta_power = beta_power
        self.gamma = gamma
        self.gamma_power = gamma_power
        self.rho = rho
        self.normalize = normalize

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Even weights, no step yet."""
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("steps", torch.zeros(len(tasks), dtype=torch.long))
        self.register_buffer("shares", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    def allocate(self, size: int, dtype: torch.dtype) -> None:
        """The tracked gradients, [T, size]."""
        self.register_buffer("tracked", torch.zeros(len(self.steps), size, dtype=dtype, device=self.steps.device))

    def rows(self, jacobian: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The tracked gradients with this step's, in place."""
        steps = self.steps.tolist()
        for row, task, loss in zip(jacobian, present.tolist(), losses.tolist(), strict=True):
            if self.normalize:
                norm = float(row.norm())
                row.mul_(loss / norm if norm > 0 else 0.0)
            row.lerp_(self.tracked[task], 1 - self.beta / (steps[task] + 1) ** self.beta_power)
            if self.training:
                self.tracked[task] = row
                self.steps[task] += 1
        return jacobian

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """One step for the min-norm weights of the tracked gradients."""
        present = torch.arange(len(gramian)) if present is None else present
        weights = shares.share(self.shares, present)
        length = self.gamma / (int(self.step) + 1) ** self.gamma_power
        weights = shares.project(weights - length * (gramian @ weights + self.rho * weights))
        if self.training:
            shares.reassign(self.shares, present, weights)
            self.step += 1
        return weights
