"""Smooth Tchebycheff scalarization."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import LossWeighting, TaskInfo


class STCH(LossWeighting):
    """Smooth Tchebycheff scalarization (Lin, Zhang, Yang, Liu, Wang, Zhang, ICML 2024).

    In the first ``warmup`` epochs the objective is the sum of log(L_t) and z_t is the mean loss of the last of them. After
    that it is P * mu * logsumexp(log(L_t / z_t) / mu), a smooth P * max_t log(L_t / z_t), over the P present tasks. Weights
    are 1 / L_t in the warm-up, then P * softmax(log(L / z) / mu) / L_t: a sum, and in both phases the sum of w_t * L_t is P.
    Every loss must be more than 0.

    A task without a label in the last epoch of the warm-up takes z from the last epoch before that had one, or else from the
    first after it, and counts as L_t = z_t until then. Ours counts all epochs of logarithms as warm-up; the authors' code does
    not count the one that gives z, so that its default of 4 is 5 here.

    Args:
        mu: smoothing, > 0; towards 0 only the task with the largest L / z learns.
        warmup: epochs, at least 1.
    """

    epoch: Tensor
    reference: Tensor

    def __init__(self, mu: float = 1.0, warmup: int = 5) -> None:
        super().__init__()
        if not mu > 0:
            raise ConfigError(f"model.weighting.init_args.mu is {mu}, expected > 0")
        if warmup < 1:
            raise ConfigError(f"model.weighting.init_args.warmup is {warmup}, expected at least 1: z needs an epoch of losses")
        self.mu = mu
        self.warmup = warmup
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Room for z."""
        self.register_buffer("reference", torch.full((len(tasks),), torch.nan))

    def epoch_end(self, losses: Tensor, seen: Tensor) -> None:
        """Count the epoch, and take z in the warm-up or where it is missing."""
        wanted = seen.to(self.reference.device)
        if int(self.epoch) >= self.warmup:
            wanted = wanted & self.reference.isnan()
        self.reference[wanted] = losses.to(self.reference)[wanted]
        self.epoch += 1

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """1 / L, after the warm-up P * softmax(log(L / z) / mu) / L."""
        self.need_positive(losses, present)
        if int(self.epoch) < self.warmup:
            return 1 / losses
        reference = self.reference[present].to(losses)
        ratios = torch.where(reference.isnan(), torch.ones_like(losses), losses / reference)
        return len(present) * torch.softmax(ratios.log() / self.mu, 0) / losses
