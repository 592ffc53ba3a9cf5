"""Dual balancing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting, TaskInfo


class DBMTL(GradientWeighting):
    """Dual balancing (Lin et al.: Dual-Balancing for Multi-Task Learning, arXiv 2308.12029, 2023; Neural Networks, 2025).

    Gradients are those of log L. Their moving average a_t = b * a_t + (1 - b) * g_t with b = beta / k^power starts at 0; the
    weight of task t is max_u |a_u| / |a_t|, so that all tasks pull with the norm of the largest, and the step is the sum. An
    average that is exactly 0 has the weight 1. Heads are trained with the unweighted losses.

    Ours: k counts the steps in which the task was present; an absent task's average and count rest. The official code takes
    the logarithm for the heads too, and adds 1e-8 to losses and norms. It tunes beta by data set from .1 to .9, and leaves
    power at 0 or .5. Losses must be positive. ``Combined`` with ScaleInvariant takes the logarithm for the heads as well, and
    leaves the step of the shared parameters as it is.

    Memory: one number a task and shared parameter, in every checkpoint.

    Args:
        beta: the weight of the past in the first step, 0 to 1; 0 keeps no average (but the memory).
        power: how fast that falls, 0 or more.
    """

    needs_rows = True
    steps: Tensor
    average: Tensor

    def __init__(self, beta: float = 0.9, power: float = 0.5) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ConfigError(f"model.weighting.init_args.beta is {beta}, expected 0 to 1, less than 1")
        if not power >= 0:
            raise ConfigError(f"model.weighting.init_args.power is {power}, expected 0 or more")
        self.beta = beta
        self.power = power

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """No step yet."""
        self.register_buffer("steps", torch.zeros(len(tasks), dtype=torch.long))

    def allocate(self, size: int, dtype: torch.dtype) -> None:
        """The averages, [T, size]."""
        self.register_buffer("average", torch.zeros(len(self.steps), size, dtype=dtype, device=self.steps.device))

    def rows(self, jacobian: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The averages with this step's gradients of log L, in place."""
        self.need_positive(losses, present)
        steps = self.steps.tolist()
        for row, task, loss in zip(jacobian, present.tolist(), losses.tolist(), strict=True):
            row.div_(loss).lerp_(self.average[task], self.beta / (steps[task] + 1) ** self.power)
            if self.training:
                self.average[task] = row
                self.steps[task] += 1
        return jacobian

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """The largest norm over each."""
        norms = gramian.diagonal().sqrt()
        return torch.where(norms > 0, norms.max() / norms, 1.0)
