"""Gradient normalisation."""

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting.adam import VectorAdam
from mtl_lightning.weighting.base import GradientWeighting, TaskInfo

LEAST: Final = 1e-3
"""What a weight does not fall below, where the mean is 1."""


class GradNorm(GradientWeighting):
    """Gradient normalisation (Chen, Badrinarayanan, Lee, Rabinovich: GradNorm, ICML 2018).

    After each step an Adam of its own moves w down the gradient of sum_t |w_t * n_t - m * r_t^alpha|, n_t being the norm of
    task t's gradient, m the mean of w_t * n_t (held fixed) and r_t = (L_t / L_t(0)) / mean of these. Then the weights are scaled
    to the sum P over the P present tasks: the mean weight is 1. Heads are trained with the weighted losses.

    Ours: norms are taken in units of m, so that Adam's epsilon means the same under any loss scale; a weight does not fall below
    .001 (nothing keeps the paper's from becoming negative); L_t(0) is the loss where the task was first seen. An absent task's
    weight, first loss and moments rest; what the present ones have together stays. So does the weight of a task whose gradient is
    exactly 0, which would otherwise draw all weight to itself, and it is left out of the means.

    Args:
        alpha: how strongly slow tasks are pushed, 0 or more; the paper takes 1.5 on NYUv2, and .12 on its toy.
        lr: of the weights.
        over: which gradients: of the last shared layer, as in the paper (where there are several experts or stitched trunks, of
            each one's last), or of all shared parameters.
    """

    heads = "weighted"
    weights: Tensor
    initial: Tensor

    def __init__(self, alpha: float = 1.5, lr: float = 0.025, over: Literal["last", "shared"] = "last") -> None:
        super().__init__()
        if not alpha >= 0:
            raise ConfigError(f"model.weighting.init_args.alpha is {alpha}, expected 0 or more")
        if not lr > 0:
            raise ConfigError(f"model.weighting.init_args.lr is {lr}, expected > 0")
        if over not in ("last", "shared"):
            raise ConfigError(f"model.weighting.init_args.over is {over}, expected last or shared")
        self.alpha = alpha
        self.rate = lr
        self.over = over

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Weights of 1; no first loss yet."""
        self.register_buffer("weights", torch.ones(len(tasks)))
        self.register_buffer("initial", torch.full((len(tasks),), torch.nan, dtype=torch.float64))
        self.optimizer = VectorAdam(len(tasks), self.rate)

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """The weights so far; then they move."""
        present = torch.arange(len(gramian)) if present is None else present
        weights = self.weights.to(gramian)[present]
        weights *= len(weights) / weights.sum()
        if self.training:
            if losses is None:
                raise TrainingError("model.weighting GradNorm compares losses with their first values; it was given none")
            ratios = self._ratios(losses, present)
            norms = gramian.diagonal().sqrt()
            pulling = norms > 0
            if pulling.any():
                self._move(weights[pulling] * norms[pulling], norms[pulling], ratios[pulling], present[pulling])
        return weights

    def _ratios(self, losses: Tensor, present: Tensor) -> Tensor:
        """L(t) / L(0)."""
        initial = self.initial.to(losses)[present]
        initial = torch.where(initial.isnan(), losses, initial)
        for task, first, loss in zip(present.tolist(), initial.tolist(), losses.tolist(), strict=True):
            if not (first > 0 and loss >= 0):
                name = self.names[task] if self.names else task
                raise TrainingError(
                    f"model.weighting GradNorm compares every loss with its first value, and the loss of task '{name}' was "
                    f"{first:g} at first and is {loss:g}; expected more than 0, then 0 or more. Take another weighting, or "
                    "another loss for this task"
                )
        self.initial[present.to(self.initial.device)] = initial.to(self.initial)
        return losses / initial

    def _move(self, pulls: Tensor, norms: Tensor, ratios: Tensor, tasks: Tensor) -> None:
        """One step of Adam, then the sum of before."""
        mean = ratios.mean()
        rates = ratios / mean if mean > 0 else torch.ones_like(ratios)
        unit = pulls.mean()
        gradient = norms / unit * torch.sign(pulls / unit - rates**self.alpha)
        positions = tasks.to(self.weights.device)
        total = self.weights[positions].sum()
        self.optimizer.step(self.weights, gradient, positions)
        moved = self.weights[positions].clamp(min=LEAST)
        self.weights[positions] = moved * (total / moved.sum())
