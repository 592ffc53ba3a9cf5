"""Random loss weighting."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.weighting.base import LossWeighting, TaskInfo


class RLW(LossWeighting):
    """Random loss weighting (Lin, Ye, Zhang, Tsang: Reasonable Effectiveness of Random Weighting, TMLR 2022).

    Each step's weights are the softmax of a normal draw, sum 1 over the present tasks. The draw depends on (seed, step) only,
    so that it is the same on all ranks and after a resume.

    Args:
        seed: of the draws.
    """

    step: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.tasks = 0
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Count the tasks."""
        self.tasks = len(tasks)

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """A new draw."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + int(self.step)) % 2**63)
        draw = torch.randn(self.tasks, generator=generator).to(losses)
        if self.training:
            self.step += 1
        return torch.softmax(draw[present], 0)
