"""Group optimization for multi-task alignment."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import LossWeighting, TaskInfo


class GO4Align(LossWeighting):
    """GO4Align (Shen, Wang, Xiao, van Noord, Worring: Group Optimization for Multi-Task Alignment, NeurIPS 2024).

    Each present task has an indicator (sum of L) / L_t * q_t: its risk ratio, times a smoothness q that a step multiplies by
    exp(-beta * L_t) and brings back to its sum. The indicators are parted into groups by k-means, and a task's weight is its
    group's mean. Equal losses weigh 1 each: the scale of a sum, P times the paper's formula, as in the authors' code. Every
    loss must be more than 0.

    Ours differs in two points. The one-dimensional k-means is solved exactly, by dynamic programming over the sorted
    indicators, so that it is the same on all processes. q is normalised within the present tasks: an absent one keeps its q,
    and does not gain from being absent.

    Args:
        groups: how many, at least 1; with fewer tasks present each is its own. The paper has 2 on NYUv2 and 5 on QM9.
        beta: temperature of q, at least 0; the authors' code has 1e-4.
    """

    log_smoothness: Tensor

    def __init__(self, groups: int = 2, beta: float = 1e-4) -> None:
        super().__init__()
        if groups < 1:
            raise ConfigError(f"model.weighting.init_args.groups is {groups}, expected at least 1")
        if not beta >= 0:
            raise ConfigError(f"model.weighting.init_args.beta is {beta}, expected at least 0")
        self.groups = groups
        self.beta = beta

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """The logarithm of q, the same for all."""
        self.register_buffer("log_smoothness", torch.zeros(len(tasks)))

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The means of the groups of indicators."""
        self.need_positive(losses, present)
        risks, before = losses.cpu().double(), self.log_smoothness[present].cpu().double()
        after = before - self.beta * risks
        if self.training:
            kept = after + before.logsumexp(0) - after.logsumexp(0)
            self.log_smoothness[present] = kept.to(self.log_smoothness)
        indicators = risks.sum() / risks * torch.softmax(after, 0)
        return group_means(indicators, self.groups).to(losses)


def group_means(values: Tensor, groups: int) -> Tensor:
    """Replace each number by the mean of its group, where the groups have the least sum of squared deviations.

    Args:
        values: [P].
        groups: how many; at most P are made.
    """
    count, groups = len(values), min(groups, len(values))
    ordered, order = values.sort(stable=True)
    center = ordered.mean()
    sums = torch.cat([values.new_zeros(1), (ordered - center).cumsum(0)])
    squares = torch.cat([values.new_zeros(1), ((ordered - center) ** 2).cumsum(0)])
    # cost[i, j]: of the group of the i-th to the j-th number.
    sizes = (torch.arange(count) - torch.arange(count)[:, None] + 1).clamp_min(1)
    cost = squares[1:] - squares[:-1, None] - (sums[1:] - sums[:-1, None]) ** 2 / sizes
    cost = cost.clamp_min(0).masked_fill(torch.ones(count, count, dtype=torch.bool).tril(-1), torch.inf)
    best, starts = cost[0], []
    for _ in range(groups - 1):
        # best[j]: the least cost of the numbers up to the j-th with one group more, the last of which starts at starts[j].
        best, start = (torch.cat([best.new_full((1,), torch.inf), best[:-1]])[:, None] + cost).min(0)
        starts.append(start.tolist())
    means, end = torch.empty_like(values), count
    for start in reversed(starts):
        first = start[end - 1]
        means[order[first:end]] = ordered[first:end].mean()
        end = first
    means[order[:end]] = ordered[:end].mean()
    return means
