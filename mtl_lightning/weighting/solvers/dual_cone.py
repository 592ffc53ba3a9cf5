"""The projection of gradients on the cone of directions that conflict with none of them."""

from functools import cache
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl_lightning.weighting.solvers.units import unit_gramian

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

ENTER = 1e-11
"""A product with a unit gradient below the negative of this is a conflict to be removed."""
CERTIFIED = 1e-9
"""Largest residual, by the length of a unit gradient, of a solution of the fast way."""
NEGLIGIBLE = 1e-13
"""Smallest squared distance of a unit gradient from the span of others at which it counts as outside."""
FEW = 4
"""Tasks whose chosen sets are all tried: faster than to look for the right ones."""


def project(gramian: Tensor, preferences: Tensor) -> Tensor:
    """Weights of the projections of weighted sums of gradients on their dual cone {d: g_j . d >= 0 for all j}.

    With J's rows the gradients, the projection of J^T u is J^T v for the v that minimises v^T G v over v >= u. Solved exactly
    by active sets, on the Gramian of the unit gradients, so that badly scaled gradients do no harm: the residual
    |min(v - u, G v)| there, relative to the longest gradient in u, is 1e-9 or less, but for what rounding does to weights
    above 1e6 (gradients opposite to each other up to 1e-6). Where several v are optimal (dependent gradients), the projection
    is the same for all. A zero gradient keeps its weight in u.

    Args:
        gramian: float64 [P, P]; what makes it indefinite (rounding) is cut off.
        preferences: float64 [R, P], the vectors u.

    Returns:
        float64 [R, P].
    """
    cosines, norms = unit_gramian(gramian.numpy())
    scaled = preferences.numpy() * norms
    sizes = np.abs(scaled).max(1, keepdims=True)
    sizes[sizes == 0] = 1.0
    scaled /= sizes
    if (scaled @ cosines).min() >= 0:
        return preferences.clone()
    cosines = _semidefinite(cosines)
    surplus, certified = (_enumerated if len(cosines) <= FEW else _together)(cosines, scaled)
    for row in np.flatnonzero(~certified):
        surplus[row] = _alone(cosines, scaled[row])
    return preferences + torch.from_numpy(surplus * sizes / norms)


def _semidefinite(cosines: Array) -> Array:
    """Without its negative eigenvalues, where there are any beyond rounding."""
    # Torch's solvers, here and elsewhere: numpy's would wake threads of its own beside those of the training.
    matrix = torch.from_numpy(cosines)
    if torch.linalg.cholesky_ex(matrix + 1e-13 * torch.eye(len(cosines), dtype=matrix.dtype)).info == 0:
        return cosines
    values, vectors = torch.linalg.eigh(matrix)
    return np.asarray(((vectors * values.clamp_min(0)) @ vectors.T).numpy())


@cache
def _subsets(tasks: int) -> tuple[Array, Array, Array]:
    """Of each subset: its members as 0 and 1; its pairs of members; a ridge of 1 elsewhere, and a negligible one within."""
    members = np.array(list(product((0.0, 1.0), repeat=tasks)))
    pairs = members[:, :, None] * members[:, None]
    return members, pairs, np.eye(tasks) * np.where(members > 0, 1e-15, 1.0)[:, None]


def _enumerated(cosines: Array, scaled: Array) -> tuple[Array, Mask]:
    """All problems of few tasks: for each, of all chosen sets the one that comes closest to the conditions."""
    members, pairs, ridge = _subsets(len(cosines))
    points = -(members[:, None] * (scaled @ cosines)) @ np.linalg.inv(pairs * cosines + ridge)
    residuals = _residual(cosines, scaled, points)
    best = residuals.argmin(0)
    every = np.arange(len(scaled))
    return points[best, every].clip(0), residuals[best, every] <= CERTIFIED


def _together(cosines: Array, scaled: Array) -> tuple[Array, Mask]:
    """All problems at once: x >= 0 with w = G (u + x) >= 0 and x . w = 0, and which of the solutions hold.

    Each problem keeps the linear system w = K x + q exchanged by principal pivots: its solution with the chosen set's w at 0
    and the others' x at 0 stands in q, the last column. An active-set step (Lawson and Hanson, 1974) is then one pivot, a
    rank-1 update.
    """
    count, tasks = scaled.shape
    solution, certified = np.zeros_like(scaled), np.zeros(count, bool)
    rows = every = np.arange(count)
    table = np.empty((count, tasks, tasks + 1))
    table[:, :, :-1] = cosines
    table[:, :, -1] = scaled @ cosines
    point, chosen = np.zeros_like(scaled), np.zeros(scaled.shape, bool)
    for _ in range(4 * tasks + 10):
        target = table[:, :, -1]
        conflict = np.where(chosen, 0.0, target)
        pivots = conflict.argmin(1)
        # Where the chosen set's solution is positive, go there and choose the worst conflict; else go as far as is allowed.
        goal = target - conflict
        outside = goal < 0
        stopped = outside.any(1)
        done = (conflict[every, pivots] >= -ENTER) | (table[every, pivots, pivots] <= NEGLIGIBLE)
        if stopped.any():
            done &= ~stopped
            reach = np.divide(point, point - goal, out=np.full(point.shape, np.inf), where=outside)
            leaving = reach.argmin(1)
            point += reach[every, leaving].clip(0, 1)[:, None] * (goal - point)
            pivots = np.where(stopped, leaving, pivots)
            point[stopped, pivots[stopped]] = 0.0
        else:
            point = goal
        if done.any():
            solution[rows[done]], certified[rows[done]] = _refine(
                cosines, scaled[rows[done]], point[done], chosen[done], table[done, :, :-1]
            )
            left = ~done
            rows, point, chosen, pivots, table = rows[left], point[left], chosen[left], pivots[left], table[left]
            every = every[: len(rows)]
            if not len(rows):
                break
        chosen[every, pivots] ^= True
        column = table[every, :, pivots]
        pivot = column[every, pivots][:, None]
        row = table[every, pivots] / pivot
        torch.from_numpy(table).addcmul_(torch.from_numpy(column)[:, :, None], torch.from_numpy(row)[:, None], value=-1)
        table[every, pivots] = -row
        table[every, :, pivots] = column / pivot
        table[every, pivots, pivots] = 1 / pivot[:, 0]
    return solution, certified


def _refine(cosines: Array, scaled: Array, point: Array, chosen: Mask, inverse: Array) -> tuple[Array, Mask]:
    """One step of iterative refinement, and whether the conditions hold after it."""
    error = np.where(chosen, (scaled + point) @ cosines, 0.0)
    point = np.where(chosen, point - (inverse @ error[:, :, None])[:, :, 0], 0.0).clip(0)
    return point, _residual(cosines, scaled, point) <= CERTIFIED


def _residual(cosines: Array, scaled: Array, point: Array) -> Array:
    """Largest of |min(x, w)|."""
    return np.asarray(np.abs(np.minimum(point, (scaled + point) @ cosines)).max(-1))


def _alone(cosines: Array, scaled: Array) -> Array:
    """One problem, as nonnegative least squares on a square root of the Gramian: slower, without its condition squared."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(cosines))
    root = (values.clamp_min(0).sqrt()[:, None] * vectors.T).numpy()
    goal = -(root @ scaled)
    point, chosen, barred = np.zeros(len(scaled)), np.zeros(len(scaled), bool), np.zeros(len(scaled), bool)
    for _ in range(10 * len(scaled)):
        conflict = np.where(chosen | barred, 0.0, -(root.T @ (goal - root @ point)))
        enters = int(conflict.argmin())
        if conflict[enters] >= -ENTER:
            break
        chosen[enters] = True
        target = _least_squares(root, goal, chosen)
        if target[enters] <= 0:  # Rounding: it lies in the span of the chosen.
            chosen[enters], barred[enters] = False, True
            continue
        while (target[chosen] <= 0).any():
            outside = np.flatnonzero(chosen & (target <= 0))
            reach = point[outside] / (point[outside] - target[outside])
            point += reach.min() * (target - point)
            point[outside[reach.argmin()]] = 0.0
            chosen &= point > 0
            target = _least_squares(root, goal, chosen)
        point = target
        barred[:] = False
    return point


def _least_squares(root: Array, goal: Array, chosen: Mask) -> Array:
    solution = np.zeros(len(chosen))
    columns, aim = torch.from_numpy(root[:, chosen]), torch.from_numpy(goal)[:, None]
    solution[chosen] = torch.linalg.lstsq(columns, aim, driver="gelsd").solution[:, 0].numpy()
    return solution
