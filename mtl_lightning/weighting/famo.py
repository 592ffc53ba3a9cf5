"""Fast adaptive multitask optimization."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting.adam import VectorAdam
from mtl_lightning.weighting.base import LossWeighting, TaskInfo


class FAMO(LossWeighting):
    """FAMO (Liu, Feng, Stone, Liu: FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023).

    With z = softmax(xi) over the present tasks the objective is the sum of z_t * log(L_t) divided by c, c = sum of z_t / L_t
    held constant. Weights are z_t / (c * L_t) = softmax(xi - log L): sum 1. After the optimizer's step the same rows give
    their losses again, and Adam moves xi by the gradient of the sum of z_t * (log L_t before - log L_t after): a task whose
    log loss fell less than the others' gains weight. Everything, heads as well, is trained with the weighted losses. Every
    loss must be more than 0. xi and its moments of a task that is absent, or whose loss before or after the step is not a
    finite number, stay.

    The weight decay ``gamma`` is 1e-3 in the authors' scripts for NYUv2, QM9 and CelebA, 1e-2 for Cityscapes. Their code also
    calls a clipping of gradients before backward, where there are none: clip with ``trainer.gradient_clip_val``.

    Args:
        lr: learning rate of xi.
        gamma: weight decay of xi.
        every: revisit each k-th step only, the first included; xi rests in the others. 1 is the paper's.
        fraction: the share of a batch's rows to revisit, their losses before and after; 1 is the paper's.
        min_losses: the lowest loss a task can reach, before its ``weight``, by its name: subtracted before the logarithm. 0
            for those not named.
    """

    logits: Tensor
    step: Tensor
    floor: Tensor

    def __init__(
        self,
        lr: float = 0.025,
        gamma: float = 1e-3,
        every: int = 1,
        fraction: float = 1.0,
        min_losses: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        for name, value, good, expected in (
            ("lr", lr, lr > 0, "> 0"),
            ("gamma", gamma, gamma >= 0, "at least 0"),
            ("every", every, every >= 1, "at least 1"),
            ("fraction", fraction, 0 < fraction <= 1, "more than 0 and at most 1"),
        ):
            if not good:
                raise ConfigError(f"model.weighting.init_args.{name} is {value}, expected {expected}")
        self.rate, self.gamma, self.every, self.fraction = lr, gamma, every, fraction
        self.min_losses = dict(min_losses or {})
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """The logits xi, their optimizer, and the lowest losses."""
        names = self.configured or [task.name for task in tasks]
        for name in self.min_losses:
            if name not in names:
                raise ConfigError(f"model.weighting.init_args.min_losses names '{name}', expected tasks of {', '.join(names)}")
        self.register_buffer("logits", torch.zeros(len(tasks)))
        self.optimizer = VectorAdam(len(tasks), self.rate, weight_decay=self.gamma)
        floor = torch.tensor([self.min_losses.get(task.name, 0.0) * task.weight for task in tasks])
        # Not in checkpoints: it follows from the configuration.
        self.register_buffer("floor", floor, persistent=False)

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """softmax(xi - log L)."""
        return torch.softmax(self.logits[present].to(losses) - self._logarithms(losses, present), 0)

    def revisit(self) -> float:
        """The fraction, each k-th step."""
        due = int(self.step) % self.every == 0
        self.step += 1
        return self.fraction if due else 0.0

    def revisited(self, before: Tensor, after: Tensor, present: Tensor) -> None:
        """One step of Adam on xi."""
        finite = before.isfinite() & after.isfinite()
        before, after, present = before[finite], after[finite], present[finite]
        gain = self._logarithms(before, present) - self._logarithms(after, present)
        share = torch.softmax(self.logits.to(gain)[present.to(gain.device)], 0)
        self.optimizer.step(self.logits, share * (gain - (share * gain).sum()), present)

    def _logarithms(self, losses: Tensor, present: Tensor) -> Tensor:
        if not self.min_losses:
            self.need_positive(losses, present)
            return losses.log()
        above = losses - self.floor.to(losses)[present.to(losses.device)]
        for position, loss, rest in zip(present.tolist(), losses.tolist(), above.tolist(), strict=True):
            if rest <= 0:
                name, floor = self.names[position] if self.names else str(position), float(self.floor[position])
                raise TrainingError(
                    f"model.weighting.init_args.min_losses of task '{name}', times its weight, is {floor:g}, "
                    f"and its loss is {loss:g}; expected the lowest loss that it can reach, or less"
                )
        return above.log()
