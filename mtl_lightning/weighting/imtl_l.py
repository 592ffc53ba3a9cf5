"""The loss half of impartial multi-task learning."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.weighting.base import LossWeighting, TaskInfo


class IMTLL(LossWeighting):
    """IMTL-L (Liu et al.: Towards Impartial Multi-task Learning, ICLR 2021).

    One learnt s_t a task, started at 0; the objective is the sum of exp(s_t) * L_t - s_t. At its optimum exp(s_t) * L_t = 1:
    all scaled losses are equal. Weights are exp(s_t), 1 each at the start: the scale of a sum. s never gets weight decay. s of
    a task that is absent from a batch does not move. A loss that stays at 0 or less has no optimum: s grows without bound.

    Args:
        lr: learning rate of s; None takes the optimizer's.
    """

    def __init__(self, lr: float | None = None) -> None:
        super().__init__()
        self.lr = lr
        self.log_scale = nn.ParameterList()

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """One scalar a task, apart, so that an absent one has no gradient at all."""
        self.log_scale = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in tasks)

    def owners(self) -> dict[nn.Parameter, int]:
        """Each s belongs to its task."""
        return {parameter: task for task, parameter in enumerate(self.log_scale)}

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """Weights with gradient to s."""
        return torch.stack([self.log_scale[task] for task in present.tolist()]).exp()

    def penalty(self, present: Tensor) -> Tensor:
        """Minus the sum of s over the present tasks."""
        return -torch.stack([self.log_scale[task] for task in present.tolist()]).sum()
