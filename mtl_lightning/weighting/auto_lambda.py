"""Meta-learnt weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.adam import VectorAdam
from mtl_lightning.weighting.base import LossWeighting, Probe, TaskInfo


class AutoLambda(LossWeighting):
    """Auto-Lambda (Liu, James, Davison, Johns: Disentangling Dynamic Task Relationships, TMLR 2022).

    The weights lambda are those whose step helps the primary tasks on other data. Before each step, with parameters theta,
    the step's batch 0 and another batch 1 of the training set:

    - a virtual step theta' = theta - lr * gradient of sum(lambda_t * L_t), on batch 0;
    - v = gradient of the sum of the primary tasks' losses at theta', on batch 1;
    - the gradient of that sum for lambda_t is -lr * (gradient of L_t on batch 0) v, taken as the finite difference
      -lr * (L_t(theta + e v) - L_t(theta - e v)) / (2 e), e = 0.01 / norm of v; Adam moves lambda, which stays at 0 or more.

    The objective is the sum of lambda_t * L_t; the weights have no fixed sum, and start at ``init`` each. A step costs two
    gradients and two forward passes more, and memory for one copy of the parameters and v. theta is put back bit by bit.
    lambda of a task that is absent from batch 0, or whose losses are not finite numbers around theta, stays; all of them stay
    where batch 1 has no label of a primary task (v is 0) or v is not finite.

    Ours differs from the authors' code: the virtual step is plain SGD whatever the optimizer (theirs adds momentum and weight
    decay of SGD), and lambda does not become negative. Both batches come from the training set: validation data here would
    leak into the selection of models.

    Args:
        lr: learning rate of lambda.
        init: its first value, at least 0.
        primary: names of the tasks to help; None is all.
    """

    extra_batches = 1
    weights: Tensor
    helped: Tensor

    def __init__(self, lr: float = 1e-4, init: float = 0.1, primary: list[str] | None = None) -> None:
        super().__init__()
        if not lr > 0:
            raise ConfigError(f"model.weighting.init_args.lr is {lr}, expected > 0")
        if not init >= 0:
            raise ConfigError(f"model.weighting.init_args.init is {init}, expected at least 0")
        if primary is not None and not primary:
            raise ConfigError("model.weighting.init_args.primary is [], expected at least one task, or null for all")
        self.rate, self.init, self.primary = lr, init, primary

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """The weights and their optimizer."""
        names = [task.name for task in tasks]
        known = self.configured or names
        for name in self.primary or ():
            if name not in known:
                raise ConfigError(f"model.weighting.init_args.primary names '{name}', expected tasks of {', '.join(known)}")
        self.register_buffer("weights", torch.full((len(tasks),), self.init))
        main = [task.name for task in tasks if not task.auxiliary]
        # A run of tasks none of which is primary learns for those that it has.
        chosen = set(main if self.primary is None else self.primary) & set(names) or set(names)
        helped = torch.tensor([float(name in chosen) for name in names])
        # Not in checkpoints: it follows from the configuration.
        self.register_buffer("helped", helped, persistent=False)
        self.optimizer = VectorAdam(len(tasks), self.rate)

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """Of the present tasks."""
        return self.weights[present].to(losses)

    def explore(self, probe: Probe) -> None:
        """One step of lambda."""
        origin = [parameter.detach().clone() for parameter in probe.parameters]
        try:
            move(probe.parameters, origin, probe.gradient(0, self.weights.clone()), -probe.lr)
            direction = probe.gradient(1, self.helped)
            norm = float(nn.utils.get_total_norm(direction))
            if norm == 0 or not math.isfinite(norm):
                return
            step = 0.01 / norm
            move(probe.parameters, origin, direction, step)
            above, present = probe.losses(0)
            move(probe.parameters, origin, direction, -step)
            below, _ = probe.losses(0)
        finally:
            move(probe.parameters, origin)
        slope = -probe.lr * (above - below) / (2 * step)
        finite = slope.isfinite()
        self.optimizer.step(self.weights, slope[finite], present[finite])
        self.weights.clamp_(min=0)


@torch.no_grad()
def move(
    parameters: Sequence[nn.Parameter], origin: Sequence[Tensor], direction: Sequence[Tensor] | None = None, step: float = 0.0
) -> None:
    """Set parameters to origin + step * direction, or exactly back to origin without a direction."""
    for index, parameter in enumerate(parameters):
        parameter.copy_(origin[index])
        if direction is not None:
            parameter.add_(direction[index], alpha=step)
