"""Gramians brought to a unit diagonal."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ZERO = 1e-50
"""A gradient whose squared norm is below this share of the largest one is no gradient."""


@dataclass(frozen=True)
class Scaled:
    """A Gramian without its zero rows, scaled so that its diagonal lies in [0.5, 2).

    Attributes:
        matrix: [K, K] of the K tasks that have a gradient; its entries are exact, for the scales are powers of two.
        scale: [K]; matrix = scale * gramian * scale.
        kept: [K] positions of these tasks among the P of the Gramian.
        size: P.
    """

    matrix: Array
    scale: Array
    kept: NDArray[np.intp]
    size: int

    def semidefinite(self) -> "Scaled":
        """The nearest problem whose matrix has no negative eigenvalue."""
        values, vectors = np.linalg.eigh((self.matrix + self.matrix.T) / 2)
        return Scaled((vectors * np.maximum(values, 0.0)) @ vectors.T, self.scale, self.kept, self.size)

    def spread(self, values: Array) -> Array:
        """Values of the kept tasks to all of them; 0 for the others."""
        if len(values) == self.size:
            return values
        everyone = np.zeros(self.size)
        everyone[self.kept] = values
        return everyone


def scaled(gramian: Array) -> Scaled:
    """Drop the zero rows of a Gramian [P, P] and bring the rest to a unit diagonal, up to powers of two."""
    diagonal = gramian.diagonal()
    size = len(diagonal)
    largest = diagonal.max()
    kept = (diagonal > ZERO * largest).nonzero()[0]
    if len(kept) < size:
        gramian, diagonal = gramian[kept[:, None], kept], diagonal[kept]
    scale = np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2))
    return Scaled(gramian * scale[:, None] * scale, scale, kept, size)
