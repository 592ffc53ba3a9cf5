"""Gradient vaccine."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting, TaskInfo
from mtl_lightning.weighting.solvers.orders import random_orders
from mtl_lightning.weighting.solvers.units import unit_gramian

HIGHEST = 1 - 1e-6
"""Of a cosine that is aimed at: gradients that always agreed would otherwise be given infinite weight when they do not."""
NOTHING = 1e-12
"""Squared length, by a gradient's own, under which nothing is left of it."""


class GradVac(GradientWeighting):
    """Gradient vaccine (Wang, Tsvetkov, Firat, Cao: Gradient Vaccine, ICLR 2021).

    Each gradient g_i meets the others in random order. Where the cosine of its present form with an original g_j is below the
    target of the pair, as much of g_j is added as brings it there; then the target moves towards the cosine that was met,
    target += beta * (cosine - target). Targets start at 0, where the method is PCGrad. The direction is the sum of what the
    gradients have become: every weight is 1 or more. A zero gradient has weight 1 and changes neither others nor targets. Heads
    learn from their own unweighted losses. Targets above 1 - 1e-6 count as that. The paper's choice among whole models and
    layers is the whole of the shared parameters here.

    The orders depend on (seed, step) only, so that they are the same on all ranks and after a resume.

    Args:
        beta: how fast targets follow, 0 to 1.
        seed: of the orders.
    """

    step: Tensor
    target: Tensor

    def __init__(self, beta: float = 1e-2, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ConfigError(f"model.weighting.init_args.beta is {beta}, expected 0 to 1")
        self.beta = beta
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("target", torch.zeros(0, 0))

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """One target for each ordered pair."""
        self.target = torch.zeros(len(tasks), len(tasks))

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """Sum of the combinations that the gradients have become."""
        cosines, norms = unit_gramian(gramian.numpy())
        tasks = len(norms)
        if present is None:
            present = torch.arange(tasks)
            if len(self.target) != tasks:
                self.target = torch.zeros(tasks, tasks)
        here = (present[:, None], present[None, :])
        targets = self.target.to(gramian)[here].numpy()
        orders = random_orders(tasks, self.seed, int(self.step))
        # Row i: what g_i has become, by its first length and in unit gradients; and its products with them.
        mixed, products = np.eye(tasks), cosines.copy()
        alive = cosines.diagonal() > 0
        every = np.arange(tasks)
        for others in orders.T:
            squares = (mixed * products).sum(1)
            usable = alive & alive[others] & (squares > NOTHING)
            lengths = np.sqrt(np.where(usable, squares, 1.0))
            met = (products[every, others] / lengths).clip(-1, 1)
            aim = targets[every, others]
            capped = np.minimum(aim, HIGHEST)
            across = np.sqrt(1 - capped * capped)
            added = np.where(usable & (met < capped), lengths * (capped * np.sqrt(1 - met * met) / across - met), 0.0)
            mixed[every, others] += added
            products += added[:, None] * cosines[others]
            targets[every, others] = np.where(usable, aim + self.beta * (met - aim), aim)
        if self.training:
            self.step += 1
            self.target[here] = torch.from_numpy(targets).to(self.target)
        return torch.from_numpy((mixed * norms[:, None]).sum(0) / norms)
