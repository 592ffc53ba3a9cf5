"""The learning rate over a run."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.cli import LRSchedulerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mtl_lightning.checks import at_least
from mtl_lightning.errors import ConfigError


@dataclass
class Scheduler:
    """A learning-rate schedule.

    Attributes:
        scheduler: the class and its arguments without the optimizer.
        interval: whether it moves every optimizer step or every epoch.
        frequency: every how many of them.
        monitor: the logged value that ReduceLROnPlateau looks at.
    """

    scheduler: LRSchedulerCallable
    interval: Literal["step", "epoch"] = "epoch"
    frequency: int = 1
    monitor: str | None = None

    def __post_init__(self) -> None:
        """Raise :class:`ConfigError` for a frequency below 1."""
        at_least("model.scheduler.frequency", self.frequency, 1)


def run_length(trainer: pl.Trainer, schedule: Scheduler) -> int:
    """How often a schedule moves in a run: optimizer steps or epochs, every ``frequency`` of them.

    Not ``trainer.estimated_stepping_batches``: that sets up the training loader before a checkpoint's loader state is there, and
    a resumed run would then start its epoch anew.

    Raises:
        ConfigError: the run has no end.
    """
    batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    steps = [trainer.max_steps] if trainer.max_steps > 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        steps.append(per_epoch * trainer.max_epochs)
    if not steps:
        raise ConfigError("model.scheduler needs the length of the run: set trainer.max_epochs or its own total_steps")
    length = min(steps) if schedule.interval == "step" else math.ceil(min(steps) / max(1, per_epoch))
    return max(1, math.ceil(length / schedule.frequency))


class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine down, as shares of each parameter group's own learning rate.

    With n = round(warmup * total_steps), step k (from 0) runs at the share ``floor + (1 - floor) * f(k)``, where f(k) is
    (k + 1) / (n + 1) for k < n, 1 at k = n, then (1 + cos(pi * (k - n) / (total_steps - n))) / 2, and 0 from total_steps on.
    The lowest point thus lies just before the first and just after the last step: no step is spent at a share of 0.
    (Cosine: Loshchilov and Hutter, ICLR 2017; warm-up: Goyal et al., 2017.) A step is an optimizer step, or an epoch where the
    schedule's interval is that.

    Args:
        optimizer: whose groups' learning rates are the peaks.
        warmup: share of the steps that warm up, in [0, 1).
        floor: share of the peak to start from and to end at, in [0, 1].
        total_steps: steps of the run; None where the training fills it in.

    Raises:
        ConfigError: an argument out of its range, or a step while ``total_steps`` is unknown.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.05, floor: float = 0.0, total_steps: int | None = None) -> None:
        if not 0 <= warmup < 1:
            raise ConfigError(f"WarmupCosine.warmup is {warmup}, expected a share of the run in [0, 1)")
        if not 0 <= floor <= 1:
            raise ConfigError(f"WarmupCosine.floor is {floor}, expected a share of the learning rate in [0, 1]")
        self.warmup = warmup
        self.floor = floor
        self._total_steps = self._checked(total_steps)
        super().__init__(optimizer)

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the run; assigning it moves the current learning rates onto the curve."""
        return self._total_steps

    @total_steps.setter
    def total_steps(self, steps: int | None) -> None:
        self._total_steps = self._checked(steps)
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @staticmethod
    def _checked(steps: int | None) -> int | None:
        if steps is not None and steps < 1:
            raise ConfigError(f"WarmupCosine.total_steps is {steps}, expected >= 1")
        return steps

    def share(self, step: int) -> float:
        """The share of the peak at which optimizer step ``step`` (from 0) runs."""
        if self._total_steps is None:
            if step == 0:
                return 1.0
            raise ConfigError("WarmupCosine.total_steps is not set; give it, or assign it before the first step")
        warm = round(self.warmup * self._total_steps)
        if step < warm:
            height = (step + 1) / (warm + 1)
        else:
            progress = min(1.0, (step - warm) / max(1, self._total_steps - warm))
            height = (1 + math.cos(math.pi * progress)) / 2
        return self.floor + (1 - self.floor) * height

    def get_lr(self) -> list[Any]:
        """Each group's learning rate for the current step, in closed form."""
        return [base * self.share(self.last_epoch) for base in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; a ``total_steps`` that was given here stays, so that a run can be made longer on resume."""
        mine = self._total_steps
        super().load_state_dict(state_dict)
        if mine is not None:
            self._total_steps = mine
