"""Random orders that are a pure function of seed and step."""

import numpy as np
import torch
from numpy.typing import NDArray


def random_orders(tasks: int, seed: int, step: int) -> NDArray[np.int64]:
    """For each of P tasks, the others in random order.

    Args:
        tasks: P.
        seed: with the step, what the draw depends on.
        step: likewise.

    Returns:
        [P, P - 1].
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    draw = torch.rand(tasks, tasks, generator=generator, dtype=torch.float64).numpy()
    np.fill_diagonal(draw, 2.0)  # Oneself, last, and cut off.
    return np.asarray(draw.argsort(1)[:, :-1])
