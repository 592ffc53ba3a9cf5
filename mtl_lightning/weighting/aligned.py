"""Aligned-MTL."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting
from mtl_lightning.weighting.solvers.units import unit_gramian

SMALLEST = 1e-10
"""Eigenvalues below this share of the largest are rounding."""


class AlignedMTL(GradientWeighting):
    """Independent component alignment (Senushkin, Patakin, Kuznetsov, Konushin, CVPR 2023).

    With G = V diag(lambda) V^T, weights are sqrt(lambda_min) V diag(lambda)^(-1/2) V^T times 1/P each: the mean of the
    gradients after their principal components were all brought to the length of the shortest, over the components that are
    not null. Orthogonal gradients of one length get 1/P each. Weights may be negative. Zero gradients, where all are, have 1/P.
    Heads learn from their own unweighted losses.

    The official code takes components as null by single precision; here ``tolerance`` says which are, since a null one that
    is measured with noise would make the whole step as short as the noise.

    Args:
        scale: which eigenvalue the components are brought to: the smallest as in the paper, their median, or their mean.
        tolerance: as many components are null as eigenvalues of the cosines are below this share of the largest, 0 to 1.
    """

    def __init__(self, scale: Literal["min", "median", "mean"] = "min", tolerance: float = 1e-8) -> None:
        super().__init__()
        if not 0 < tolerance < 1:
            raise ConfigError(f"model.weighting.init_args.tolerance is {tolerance}, expected more than 0 and less than 1")
        measures: dict[str, Callable[[NDArray[np.float64]], Any]] = {"min": np.min, "median": np.median, "mean": np.mean}
        if scale not in measures:
            raise ConfigError(f"model.weighting.init_args.scale is {scale!r}, expected one of {', '.join(measures)}")
        self.measure = measures[scale]
        self.tolerance = tolerance

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """B times 1/P."""
        tasks = len(gramian)
        values, vectors = (part.numpy() for part in torch.linalg.eigh(gramian))
        if not values[-1] > 0:
            return torch.full((tasks,), 1 / tasks, dtype=gramian.dtype)
        # How many there are is seen in the cosines, whatever the lengths.
        cosines, _ = unit_gramian(gramian.numpy())
        spread = torch.linalg.eigvalsh(torch.from_numpy(cosines)).numpy()
        count = int((spread > self.tolerance * spread[-1]).sum())
        count = min(count, int((values > SMALLEST * values[-1]).sum()))
        values, vectors = values[-count:], vectors[:, -count:]
        factors = np.sqrt(self.measure(values) / values)
        return torch.from_numpy(vectors @ (factors * vectors.mean(0)))
