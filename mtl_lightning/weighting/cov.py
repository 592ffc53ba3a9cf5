"""Coefficient of variation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting.base import LossWeighting, TaskInfo


class CoV(LossWeighting):
    """CoV-Weighting (Groenendijk, Karaoglu, Gevers, Mensink: Multi-Loss Weighting with Coefficient of Variations, WACV 2021).

    A loss counts by how much it still varies: weights are proportional to std(l_t) / mean(l_t) of the ratios l_t = L_t / (mean
    of the task's losses in the steps before), over all steps before this one, and sum to 1 over the present tasks. A task has
    no variation before its third step: until then it takes 1/P of the sum, P the number of present tasks, as the paper's
    first two steps do. Every task counts its own steps: one that is absent keeps its statistics. Losses must not be negative.

    Ours differs from the authors' code in that nothing is added to the variance: where no present loss varies, all weights
    are equal.

    Args:
        decay: None takes means over all steps (the paper's); a number between 0 and 1 takes running ones that keep this share
            of the past in a step, for losses and ratios.
    """

    steps: Tensor
    mean_loss: Tensor
    mean_ratio: Tensor
    squares: Tensor

    def __init__(self, decay: float | None = None) -> None:
        super().__init__()
        if decay is not None and not 0 < decay < 1:
            raise ConfigError(f"model.weighting.init_args.decay is {decay}, expected between 0 and 1, or null")
        self.decay = decay

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Each task's steps, mean loss, mean ratio and the sum of the ratios' squared deviations."""
        self.register_buffer("steps", torch.zeros(len(tasks), dtype=torch.long))
        for name in ("mean_loss", "mean_ratio", "squares"):
            self.register_buffer(name, torch.zeros(len(tasks)))

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weights by the steps before, then this step's statistics."""
        self._need_no_negative(losses, present)
        weights = self._weights(present).to(losses)
        if self.training:
            self._observe(losses.to(self.mean_loss), present)
        return weights

    def _weights(self, present: Tensor) -> Tensor:
        steps, even = self.steps[present], 1 / len(present)
        deviation = (self.squares[present] / steps.clamp_min(1)).sqrt()
        known = steps >= 2
        variation = torch.where(known, deviation / self.mean_ratio[present], torch.zeros_like(deviation))
        total = variation.sum()
        share = torch.where(total > 0, variation / total * known.sum() * even, torch.full_like(variation, even))
        return torch.where(known, share, torch.full_like(share, even))

    def _observe(self, losses: Tensor, present: Tensor) -> None:
        steps = self.steps[present] + 1
        past = self.mean_loss[present]
        # A first step, or nothing but zeros so far, is no change.
        ratios = torch.where((steps > 1) & (past > 0), losses / past, torch.ones_like(losses))
        keep = 1 - 1 / steps.to(losses)
        if self.decay is not None:
            keep = torch.where(steps > 1, torch.full_like(keep, self.decay), keep)
        mean = self.mean_ratio[present]
        new = keep * mean + (1 - keep) * ratios
        self.squares[present] += (ratios - mean) * (ratios - new)
        self.mean_ratio[present] = new
        self.mean_loss[present] = keep * past + (1 - keep) * losses
        self.steps[present] = steps

    def _need_no_negative(self, losses: Tensor, present: Tensor) -> None:
        for position, loss in zip(present.tolist(), losses.tolist(), strict=True):
            if loss < 0:
                name = self.names[position] if self.names else str(position)
                raise TrainingError(
                    f"model.weighting CoV compares every loss with its mean, and the loss of task '{name}' is {loss:g}; expected "
                    "0 or more. Take another weighting, or another loss for this task"
                )
