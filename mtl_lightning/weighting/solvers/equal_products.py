"""The combination of unit gradients that has the same product with each of them."""

import numpy as np
import torch
from numpy.typing import NDArray

NULL = 1e-8
"""Eigenvalues below this share of the largest are null."""
STATIONARY = 1e-10
"""Squared length of the combination, by the number of gradients, under which there is none."""


def equal_products(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """The solution of C b = 1; of least squares and least length where C is singular.

    Args:
        cosines: [P, P] Gramian of unit gradients; rows of zero gradients are 0.

    Returns:
        [P], 0 for zero gradients, and altogether where no common direction is left, as for exactly opposite gradients.
    """
    values, vectors = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(cosines)))
    kept = values > NULL * max(values[-1], 0.0)
    values, vectors = values[kept], vectors[:, kept]
    sums = vectors.sum(0)
    if (sums * sums / values).sum() <= STATIONARY * len(cosines):
        return np.zeros(len(cosines))
    return np.asarray(vectors @ (sums / values))
