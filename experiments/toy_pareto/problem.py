"""Two objectives of two numbers (Liu et al., NeurIPS 2021), their gradients and their Pareto set.

Above y = 0 lie two narrow valleys of logarithms, below it two flat bowls with minima near (7, -8) and (-7, -8); between these
lies the Pareto set. With scale .1 of the first objective the problem is that of Navon et al., ICML 2022.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STARTS: Array = np.array([(-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)])
"""Of Navon et al."""
LOWEST = 5e-6
"""Under the logarithms."""
SHIFT = 20.0
"""Added to both objectives, which then are above 0: some methods take logarithms. No gradient changes."""


def objectives(points: Array, scale: Array | float = 1.0) -> tuple[Array, Array]:
    """Both objectives and their gradients.

    Args:
        points: [..., 2].
        scale: [...] of the first objective.

    Returns:
        [..., 2] and [..., 2, 2], whose row i is the gradient of objective i.
    """
    x, y = points[..., 0], points[..., 1]
    tanh = np.tanh(y)
    ridges = np.stack([-0.5 * (x + 7) + tanh, -0.5 * (x - 7) - tanh], -1)
    size = np.maximum(np.abs(ridges), LOWEST)
    slope = np.where(np.abs(ridges) > LOWEST, 1 / np.where(ridges == 0, 1.0, ridges), 0.0)
    signs = np.array([1.0, -1.0])
    valleys = np.log(size) + 6
    valleys_x, valleys_y = -0.5 * slope, slope * signs * (1 - tanh**2)[..., None]

    off = x[..., None] - 7 * signs
    bowls = (off**2 + 0.1 * ((y + 8) ** 2)[..., None]) / 10 - 20
    bowls_x, bowls_y = off / 5, (0.02 * (y + 8))[..., None]

    gate = np.tanh(0.5 * y)
    gate_y = 0.5 * (1 - gate**2)
    up, down = np.maximum(gate, 0)[..., None], np.maximum(-gate, 0)[..., None]
    up_y, down_y = (gate_y * (y >= 0))[..., None], (-gate_y * (y <= 0))[..., None]

    values = valleys * up + bowls * down + SHIFT
    gradients = np.stack([valleys_x * up + bowls_x * down, valleys_y * up + valleys * up_y + bowls_y * down + bowls * down_y], -1)
    factors = np.stack(np.broadcast_arrays(np.asarray(scale, dtype=float), np.ones_like(x)), -1)
    return values * factors, gradients * factors[..., None]


def pareto_set(count: int = 401) -> Array:
    """Points [count, 2] of the Pareto set, from the minimum of the second objective to that of the first.

    Each is the minimum of a weighted sum: the bowls are convex there. A step in y is at most its inverse curvature.
    """
    shares = np.linspace(0, 1, count)
    points = np.stack([14 * shares - 7, np.full(count, -8.0)], -1)
    for _ in range(2000):
        _, gradients = objectives(points)
        gradient = shares[:, None] * gradients[:, 0] + (1 - shares[:, None]) * gradients[:, 1]
        points = points - gradient / np.array([0.2, 0.03])
    assert np.abs(gradient).max() < 1e-9, np.abs(gradient).max()
    return points


def distance(points: Array, front: Array) -> Array:
    """Of points [..., 2] to a curve [n, 2]."""
    nearest: Array = np.linalg.norm(points[..., None, :] - front, axis=-1).min(-1)
    return nearest
