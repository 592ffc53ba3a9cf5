"""Gradients that are hard on weighting methods."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def families(tasks: int, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Names and Jacobians [T, N] in float64."""
    draw = np.random.default_rng([seed, tasks])
    signs = (-1.0) ** np.arange(tasks)[:, None]
    one, full = draw.standard_normal(50), draw.standard_normal((tasks, tasks + 5))
    centred = full - full.mean(0)
    zero = full.copy()
    zero[tasks // 2] = 0
    found = {
        "any": full,
        "as many as dimensions": full[:, :tasks],
        "in half the dimensions": full[:, : max(2, tasks // 2)],
        "in three dimensions": full[:, :3],
        "sum zero": centred,
        "sum nearly zero": centred + 1e-6 * draw.standard_normal(full.shape),
        "opposite": signs * one,
        "nearly opposite": signs * one + 1e-4 * draw.standard_normal((tasks, 50)),
        "twice the same": np.repeat(full, 2, 0)[:tasks],
        "badly scaled": centred * 10.0 ** np.linspace(-6, 6, tasks)[:, None],
        "tiny": 1e-12 * centred,
        "one zero": zero,
        "ill conditioned": full * 0.5 ** np.arange(full.shape[1]),
    }
    for name, jacobian in found.items():
        yield name, torch.from_numpy(jacobian)


def units(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1 (or 0), and their lengths (1 for 0)."""
    lengths = jacobian.norm(dim=1)
    lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    return jacobian / lengths[:, None], lengths
