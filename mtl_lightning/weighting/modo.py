"""Multi-objective gradients with double sampling."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import LossWeighting, Probe, TaskInfo
from mtl_lightning.weighting.solvers import shares
from mtl_lightning.weighting.solvers.sampling import cross_gramian


class MoDo(LossWeighting):
    """Double sampling (Chen, Fernando, Ying, Chen: Three-Way Trade-Off in Multi-Objective Learning, NeurIPS 2023; JMLR 2024).

    Before each step, w = projection of w - gamma * (J1 J2^T w + rho * w) on the simplex: a step for the min-norm weights whose
    expectation is right, because the gradients J1 and J2 are of two independent batches. Of the paper's three samples a step,
    the first two are two further batches of the training set, and the third, which moves the network with the new weights, is
    the step's own batch: one backward of the weighted losses. Weights sum to 1 over the present tasks.

    gamma is a step length in units of 1 / |g|^2: it wants to be smaller where gradients are large. The defaults are the official
    code's (another implementation takes .001 for gamma). That code moves the network with the sum of both batches' gradients,
    and a task's head with its unweighted loss; here the heads are trained with the weighted losses.

    Ours: w moves for tasks that are present, with finite gradients, in both further batches; the others' rest. A step costs two
    more batches of one backward a task, and while they are measured twice T numbers a shared parameter.

    Args:
        gamma: step of the weights, more than 0.
        rho: pull towards even weights, 0 or more.
    """

    extra_batches = 2
    shares: Tensor

    def __init__(self, gamma: float = 0.1, rho: float = 0.1) -> None:
        super().__init__()
        if not gamma > 0:
            raise ConfigError(f"model.weighting.init_args.gamma is {gamma}, expected > 0")
        if not rho >= 0:
            raise ConfigError(f"model.weighting.init_args.rho is {rho}, expected 0 or more")
        self.gamma = gamma
        self.rho = rho

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Even weights."""
        self.register_buffer("shares", torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64))

    def explore(self, probe: Probe) -> None:
        """One step of the weights."""
        gramian, tasks = cross_gramian(probe)
        if len(tasks):
            weights = shares.share(self.shares, tasks)
            weights = shares.project(weights - self.gamma * (gramian @ weights + self.rho * weights))
            shares.reassign(self.shares, tasks, weights)

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """What the present tasks have of w, sum 1."""
        return shares.share(self.shares, present.cpu()).to(losses)
