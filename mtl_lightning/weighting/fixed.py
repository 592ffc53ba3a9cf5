"""Weights that do not change: from the configuration, equal, or from the amount of data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import LossWeighting, TaskInfo


class Fixed(LossWeighting):
    """The tasks' own ``weight``, brought to sum 1 over all tasks of the run.

    The objective is the sum of lambda_t * L_t with lambda_t = weight_t / sum of weights. Absent tasks do not pass their share
    on: lambda stays the same in every step.

    Args:
        normalize: False takes the plain sum of weight_t * L_t.
    """

    share: Tensor

    def __init__(self, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        # Not in checkpoints: it follows from the configuration, and a resumed run may have other weights.
        self.register_buffer("share", torch.tensor(1.0), persistent=False)

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Sum the weights."""
        if self.normalize:
            self.share.fill_(1 / sum(task.weight for task in tasks))

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The same factor for all: the importance is in the losses already."""
        return self.share.to(losses).expand(len(present))


class Equal(LossWeighting):
    """The plain sum of the losses: weight 1 each.

    Args:
        mean: weight 1/T each, over all T tasks of the run.
    """

    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.mean = mean
        self.tasks = 1

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Count the tasks."""
        self.tasks = len(tasks)

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """Ones, or 1/T."""
        return losses.new_full((len(present),), 1 / self.tasks if self.mean else 1.0)


class DataSize(LossWeighting):
    """Weights that grow with the labels a task has: proportional to n_t ** alpha, sum 1 over all tasks.

    n_t is the number of labelled training rows. ``alpha`` 1 gives every labelled row the same say, 0 every task, negative
    values favour tasks with few labels.

    Args:
        alpha: the exponent.
    """

    shares: Tensor

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Take the counts."""
        for task in tasks:
            if task.labelled < 1:
                raise ConfigError(f"model.weighting DataSize: task '{task.name}' has no labelled training row to count")
        sizes = torch.tensor([float(task.labelled) for task in tasks], dtype=torch.float64)
        shares = torch.softmax(self.alpha * sizes.log(), 0).float()
        # Not in checkpoints: it follows from the configuration and the data.
        self.register_buffer("shares", shares, persistent=False)

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The shares of the present tasks."""
        return self.shares.to(losses)[present]
