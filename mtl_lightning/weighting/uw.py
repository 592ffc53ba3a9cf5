"""Uncertainty weighting."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.weighting.base import LossWeighting, TaskInfo


class UW(LossWeighting):
    """Homoscedastic uncertainty (Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018).

    One learnt s_t = log(variance) a task, started at 0. The objective is the sum of w_t * L_t + s_t / 2 with
    w = exp(-s) / 2 for a Gaussian likelihood (squared errors), exp(-s) for a softmax, exp(-s / 2) for a Laplace likelihood
    (absolute errors, scale exp(s / 2)); the task says which. s never gets weight decay. s of a task that is absent from a
    batch does not move.

    Args:
        lr: learning rate of s; None takes the optimizer's.
    """

    def __init__(self, lr: float | None = None) -> None:
        super().__init__()
        self.lr = lr
        self.log_variance = nn.ParameterList()
        self.noise: list[str] = []

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """One scalar a task, apart, so that an absent one has no gradient at all."""
        self.log_variance = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in tasks)
        self.noise = [task.noise for task in tasks]

    def owners(self) -> dict[nn.Parameter, int]:
        """Each s belongs to its task."""
        return {parameter: task for task, parameter in enumerate(self.log_variance)}

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """Weights with gradient to s."""
        form = {
            "gaussian": lambda s: torch.exp(-s) / 2,
            "softmax": lambda s: torch.exp(-s),
            "laplace": lambda s: torch.exp(-s / 2),
        }
        return torch.stack([form[self.noise[task]](self.log_variance[task]) for task in present.tolist()])

    def penalty(self, present: Tensor) -> Tensor:
        """Half the sum of s over the present tasks."""
        return torch.stack([self.log_variance[task] for task in present.tolist()]).sum() / 2
