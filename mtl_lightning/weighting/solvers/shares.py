"""Shares: nonnegative weights that sum to 1, the points of the unit simplex."""

import torch
from torch import Tensor


def project(point: Tensor) -> Tensor:
    """The nearest point of the unit simplex: max(point - c, 0) with the one c that makes the sum 1.

    Args:
        point: [P], finite.
    """
    point = point - point.max()  # the projection is the same, and no large number cancels against the 1
    falling = point.sort(descending=True).values
    counts = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    candidates = (falling.cumsum(0) - 1) / counts
    support = int((falling > candidates).sum())  # true up to the last positive weight, false from there on
    weights = (point - candidates[support - 1]).clamp(min=0)
    return weights / weights.sum()


def share(weights: Tensor, positions: Tensor) -> Tensor:
    """What some tasks have of the simplex among themselves, sum 1; even shares where they have nothing.

    Args:
        weights: [T], on the simplex of all tasks.
        positions: int64 [P].

    Returns:
        float64 [P] on the CPU.
    """
    part = weights.to("cpu", torch.float64)[positions]
    total = part.sum()
    return part / total if total > 0 else torch.full_like(part, 1 / len(part))


def reassign(weights: Tensor, positions: Tensor, shares: Tensor) -> None:
    """Divide anew, in place, what some tasks have of the simplex together; the other tasks keep theirs."""
    positions = positions.to(weights.device)
    weights[positions] = shares.to(weights) * weights[positions].sum()
