"""Dynamic weight average."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import LossWeighting, TaskInfo


class DWA(LossWeighting):
    """Dynamic weight average (Liu, Johns, Davison: End-to-End Multi-Task Learning with Attention, CVPR 2019).

    Weights are P * softmax(r / temperature) over the P present tasks, r_t = (last epoch's mean loss) / (the one before); all 1
    in the first two epochs. Their sum is P. Epoch means are over labelled elements of all ranks; a task without a label in an
    epoch keeps its two last means.

    Args:
        temperature: of the softmax, > 0.
    """

    history: Tensor

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"model.weighting.init_args.temperature is {temperature}, expected > 0")
        self.temperature = temperature

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Room for two epochs' means."""
        self.register_buffer("history", torch.full((2, len(tasks)), torch.nan))

    def epoch_end(self, losses: Tensor, seen: Tensor) -> None:
        """Shift the means of the tasks that were seen."""
        self.history[0, seen] = self.history[1, seen]
        self.history[1, seen] = losses.to(self.history)[seen]

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """P * softmax(r / temperature)."""
        before, last = self.history[:, present]
        rate = torch.where(before.isfinite() & (before > 0), last / before, torch.ones_like(last))
        return len(present) * torch.softmax(rate / self.temperature, 0).to(losses)
