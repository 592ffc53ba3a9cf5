"""MGDA."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.scaling import Array, scaled
from mtl_lightning.weighting.solvers.simplex import min_norm

NORMALIZATIONS = ("none", "l2", "loss", "loss+")


class MGDA(GradientWeighting):
    """Multiple gradient descent (Sener, Koltun: Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018).

    The direction is the shortest vector in the convex hull of the gradients: no task gets worse along it, and it vanishes where
    the tasks are Pareto stationary. Weights are >= 0 with sum 1. Heads are trained with the weighted loss.

    With a normalization the hull is that of g_t / n_t, with n_t the gradient's norm (``l2``), the loss (``loss``) or their
    product (``loss+``), and the weights are those of its shortest vector on the g_t, brought to sum 1.

    A task whose gradient is 0 would take all weight, for 0 is then the shortest vector; it gets weight 0, and the others go on
    as if it were absent. Are all of them 0, the weights are equal.

    What differs: solved exactly (relative duality gap <= 1e-6), not by 250 Frank-Wolfe steps; and the official code puts the
    normalised problem's weights on the gradients as they are, along which a task may get worse.

    Args:
        normalization: none, l2, loss or loss+. The paper has none, the official script for MultiMNIST loss+.
    """

    heads: Literal["weighted", "unweighted"] = "weighted"

    def __init__(self, normalization: Literal["none", "l2", "loss", "loss+"] = "none") -> None:
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise ConfigError(
                f"model.weighting.init_args.normalization is {normalization}, expected one of {', '.join(NORMALIZATIONS)}"
            )
        self.normalization = normalization

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """The min-norm point; ``losses`` are needed for the normalizations loss and loss+."""
        matrix = gramian.numpy()
        if self.normalization == "none":
            return torch.from_numpy(self.solve(matrix))
        size = np.ones(len(matrix))
        if self.normalization in ("l2", "loss+"):
            size = np.sqrt(matrix.diagonal())
            size[size == 0] = 1
        if self.normalization in ("loss", "loss+"):
            size = size * self.positive(losses, present)
        weights = self.solve(matrix / size[:, None] / size) / size
        return torch.from_numpy(weights / weights.sum())

    def positive(self, losses: Tensor | None, present: Tensor | None) -> Array:
        """The losses, all of which must be more than 0."""
        if losses is None:
            raise ConfigError(
                f"model.weighting MGDA with normalization {self.normalization} needs the losses, not the Gramian alone"
            )
        values: Array = losses.numpy()
        if (values <= 0).any():
            at = int(values.argmin())
            task = at if present is None else int(present[at])
            raise TrainingError(
                f"model.weighting MGDA with normalization {self.normalization} divides by every loss, and the loss of task "
                f"'{self.names[task] if self.names else task}' is {values[at]:g}; expected more than 0. Take normalization l2, "
                "or another loss for this task"
            )
        return values

    @staticmethod
    def solve(gramian: Array) -> Array:
        """The min-norm weights of the tasks that have a gradient."""
        problem = scaled(gramian)
        return problem.spread(min_norm(problem)) if len(problem.kept) else np.full(problem.size, 1 / problem.size)
