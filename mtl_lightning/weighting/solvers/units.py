"""Gramians of unit gradients."""

import numpy as np
from numpy.typing import NDArray


def unit_gramian(gramian: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The cosines between gradients, and their lengths.

    Args:
        gramian: [P, P].

    Returns:
        [P, P], a zero gradient's row and column 0; [P], 1 for a zero gradient.
    """
    norms = np.sqrt(gramian.diagonal())
    norms = np.where(norms > 0, norms, 1.0)
    return gramian / norms / norms[:, None], norms
