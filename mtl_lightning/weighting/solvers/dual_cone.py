"""The projection of gradients on the cone of directions that conflict with none of them."""

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


def project(gramian: Tensor, preferences: Tensor) -> Tensor:
    """Weights of the projections of weighted sums of gradients on their dual cone {d: g_j . d >= 0 for all j}.

    With J's rows the gradients, the projection of J^T u is J^T v for the v that minimises v^T G v over v >= u. Solved exactly
    by active sets, on the Gramian of the unit gradients, so that badly scaled gradients do no harm: the residual of the
    optimality conditions, relative to the longest gradient in u, is 1e-9 or less. Where several v are optimal (dependent
    gradients), the projection is the same for all. A zero gradient keeps its weight in u.

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
    surplus, certified = _together(cosines, scaled)
    for row in np.flatnonzero(~certified):
        surplus[row] = _alone(cosines, scaled[row])
    return preferences + torch.from_numpy(surplus * sizes / norms)


def _semidefinite(cosines: Array) -> Array:
    """Without its negative eigenvalues, where there are any beyond rounding."""
    try:
        np.linalg.cholesky(cosines + np.eye(len(cosines)) * 1e-13)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(cosines)
        return np.asarray((vectors * values.clip(0)) @ vectors.T)
    return cosines


def _together(cosines: Array, scaled: Array) -> tuple[Array, Mask]:
    """All problems at once: x >= 0 with w = G (u + x) >= 0 and x . w = 0, and which of the solutions hold.

    Each problem keeps the linear system w = K x + q exchanged by principal pivots: its solution with the chosen set's w at 0
    and the others' x at 0 stands in q. An active-set step (Lawson and Hanson, 1974) is then one pivot, a rank-1 update.
    """
    count, tasks = scaled.shape
    solution, certified = np.zeros_like(scaled), np.zeros(count, bool)
    rows = np.arange(count)
    system = torch.from_numpy(cosines).repeat(count, 1, 1)
    target = scaled @ cosines
    point, chosen = np.zeros_like(scaled), np.zeros(scaled.shape, bool)
    for _ in range(4 * tasks + 10):
        table = system.numpy()
        every = np.arange(len(rows))
        # Where the chosen set's solution is positive, go there and choose the worst conflict; else go as far as is allowed.
        outside = chosen & (target <= 0)
        stopped = outside.any(1)
        conflict = np.where(chosen, 0.0, target)
        spare = table.diagonal(axis1=1, axis2=2)
        conflict[spare <= NEGLIGIBLE] = 0.0
        pivots = conflict.argmin(1)
        goal = np.where(chosen, target, 0.0)
        done: Mask = ~stopped & (conflict[every, pivots] >= -ENTER)
        if stopped.any():
            with np.errstate(divide="ignore", invalid="ignore"):
                reach = np.where(outside, point / (point - target), np.inf)
            leaving = reach.argmin(1)
            share = reach[every, leaving].clip(0, 1)[:, None]
            point = np.where(stopped[:, None], point + share * (goal - point), goal)
            point[stopped, leaving[stopped]] = 0.0
            pivots = np.where(stopped, leaving, pivots)
        else:
            point = goal
        if done.any():
            finished = rows[done]
            solution[finished], certified[finished] = _refine(cosines, scaled[finished], point[done], chosen[done], table[done])
            left = ~done
            if not left.any():
                break
            rows, point, chosen, target, pivots = rows[left], point[left], chosen[left], target[left], pivots[left]
            system = torch.from_numpy(table[left])
            table, every = system.numpy(), every[: len(rows)]
        chosen[every, pivots] ^= True
        column = table[every, :, pivots]
        pivot = column[every, pivots][:, None]
        row = table[every, pivots] / pivot
        entry = target[every, pivots][:, None] / pivot
        system.addcmul_(torch.from_numpy(column)[:, :, None], torch.from_numpy(row)[:, None, :], value=-1)
        target -= column * entry
        table[every, pivots] = -row
        table[every, :, pivots] = column / pivot
        table[every, pivots, pivots] = 1 / pivot[:, 0]
        target[every, pivots] = -entry[:, 0]
    return solution, certified


def _refine(cosines: Array, scaled: Array, point: Array, chosen: Mask, inverse: Array) -> tuple[Array, Mask]:
    """One step of iterative refinement, and whether the conditions hold after it."""
    error = np.where(chosen, (scaled + point) @ cosines, 0.0)
    point = np.where(chosen, point - (inverse @ error[:, :, None])[:, :, 0], 0.0).clip(0)
    return point, _residual(cosines, scaled, point) <= CERTIFIED


def _residual(cosines: Array, scaled: Array, point: Array) -> Array:
    products = (scaled + point) @ cosines
    return np.asarray(np.maximum(-products.min(1), (point * np.abs(products)).max(1)))


def _alone(cosines: Array, scaled: Array) -> Array:
    """One problem, as nonnegative least squares on a square root of the Gramian: slower, without its condition squared."""
    values, vectors = np.linalg.eigh(cosines)
    root = np.sqrt(values.clip(0))[:, None] * vectors.T
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
    solution[chosen] = np.linalg.lstsq(root[:, chosen], goal, rcond=None)[0]
    return solution
