"""Stochastic direction-oriented multi-objective gradients."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import LossWeighting, Probe, TaskInfo
from mtl_lightning.weighting.solvers import shares
from mtl_lightning.weighting.solvers.sampling import cross_gramian

MOMENTUM: Final = 0.5
"""Of the steps of the weights within one step of the network, as in the official code."""


class SDMGrad(LossWeighting):
    """Stochastic direction-oriented gradients (Xiao, Ban, Ji: Direction-oriented Multi-objective Learning, NeurIPS 2023).

    The step is (sum_t w_t * g_t + direction * g_0) / (1 + direction), g_0 the mean gradient: min-norm weights w on the simplex,
    held near the mean. Before each step w makes some projected gradient steps along J1 J2^T (w + direction / P), divided by the
    square of the mean norm, with momentum. Weights (w_t + direction / P) / (1 + direction) sum to 1 over the present tasks.

    The gradients J1 and J2 are of two independent batches, so that the expectation is right. Of the paper's three samples a
    step, these are two further batches of the training set; the third, which moves the network, is the step's own batch: one
    backward of the weighted losses. Heads are trained with the weighted losses.

    Ours: the official code writes all three batches' gradients into one tensor, so that they are one sample; trains heads with
    the unweighted losses of all three; multiplies the step by T; and adds 1e-4 to the squared norms. Where the mean norm comes
    out as 0 (inner products of independent batches can be negative) w rests, as it does for tasks that are not present, with
    finite gradients, in both further batches. A step costs two more batches of one backward a task, and while they are
    measured twice T numbers a shared parameter.

    Args:
        direction: the paper's lambda, pull towards the mean gradient, 0 or more; its scripts take .3, and .6 for MT10.
        steps: of w before each step, 1 or more.
        lr: of these steps, more than 0.
    """

    extra_batches = 2
    shares: Tensor

    def __init__(self, direction: float = 0.3, steps: int = 20, lr: float = 10.0) -> None:
        super().__init__()
        if not direction >= 0:
            raise ConfigError(f"model.weighting.init_args.direction is {direction}, expected 0 or more")
        if not steps >= 1:
            raise ConfigError(f"model.weighting.init_args.steps is {steps}, expected 1 or more")
        if not lr > 0:
            raise ConfigError(f"model.weighting.init_args.lr is {lr}, expected > 0")
        self.direction = direction
        self.steps = steps
        self.rate = lr

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Even weights."""
        self.register_buffer("shares", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    def explore(self, probe: Probe) -> None:
        """Move w."""
        gramian, tasks = cross_gramian(probe)
        norm = float(gramian.diagonal().clamp(min=0).sqrt().sum()) / max(1, len(tasks))
        if norm == 0:
            return
        gramian = gramian / norm**2
        weights = shares.share(self.shares, tasks)
        momentum = torch.zeros_like(weights)
        for _ in range(self.steps):
            momentum = MOMENTUM * momentum + gramian @ (weights + self.direction / len(weights))
            weights = shares.project(weights - self.rate * momentum)
        shares.reassign(self.shares, tasks, weights)

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """(w + direction / P) / (1 + direction)."""
        weights = shares.share(self.shares, present.cpu())
        return ((weights + self.direction / len(weights)) / (1 + self.direction)).to(losses)
