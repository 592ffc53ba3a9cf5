"""The equations of Nash-MTL and FairGrad, by damped Newton."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtl_lightning.weighting.solvers.scaling import Array, Scaled, scaled
from mtl_lightning.weighting.solvers.simplex import Hull, share

TOLERANCE = 1e-12
NULL = 1e-12
ROUGH = 1e-4
STEPS = 200
HALVINGS = 50
SETTLED = 1e-20
SUSPECT = 1e-6
RIDGE = 2.0**-50


@dataclass(frozen=True)
class Fair:
    """What :func:`fair` found.

    Attributes:
        weights: [P]; 0 for tasks without a gradient.
        residual: the largest |w^(1/alpha) * (G w) - 1| over the others.
        stationary: some convex combination of the gradients vanishes: there is no solution, and the weights are those of such
            a combination, sum 1.
    """

    weights: Array
    residual: float
    stationary: bool


def fair(gramian: Array, alpha: float, max_norm: float | None = None) -> Fair:
    """Solve G w = w^(-1/alpha) for w > 0 over the tasks that have a gradient.

    Where a Gramian that rounding left indefinite (of gradients in float32, say) prevents it, the nearest semidefinite one is
    taken.

    Args:
        gramian: [P, P].
        alpha: > 0.
        max_norm: of the weighted sum of the gradients; a longer one is brought to it.
    """
    problem = scaled(gramian)
    if not len(problem.kept):
        return Fair(np.full(problem.size, 1 / problem.size), np.inf, True)
    x, residual = newton(problem, alpha)
    if ROUGH < residual < np.inf:
        problem = problem.semidefinite()
        x, residual = newton(problem, alpha)
    if residual == np.inf:
        weights: Array = problem.scale * x
        return Fair(problem.spread(weights / float(weights.sum())), residual, True)
    if max_norm is not None:
        x = x * min(1.0, max_norm / float(np.sqrt(x @ problem.matrix @ x)))
    return Fair(problem.spread(problem.scale * x), residual, False)


def shortest(problem: Scaled) -> Array:
    """The convex combination of the gradients, all brought to one norm, that is shortest."""
    unit = Scaled(problem.matrix, np.ones(len(problem.kept)), problem.kept, problem.size)
    return share(problem, Hull(unit).solve()[0])


def newton(problem: Scaled, alpha: float) -> tuple[Array, float]:
    """The solution in the scaled variables x = w / scale and its residual; or a vanishing combination and infinity.

    It is the minimum of the convex f(w) = w^T G w / 2 - sum of w^p / p, p = 1 - 1/alpha (for alpha = 1 of log w); in x it fulfils
    A x = c x^(-1/alpha) with the unit Gramian A and c = scale^p (times a constant that only multiplies x). Each round takes the
    best multiple of x, which has a closed form; then for large alpha a leap of the weights that have to shrink by far to where
    they fulfil their equations, if that lowers f; else a Newton step, halved while it passes the minimum along its line.
    Rounding limits the residual to about 1e-16 max(x)^2; near that, the products are taken in extended precision where the
    machine has it. f has no minimum if a convex combination of the gradients vanishes; then x grows without bound. Once
    x^T A x <= 1e-6 x^T x that is looked into, and at 1e-12 it is taken for granted.
    """
    matrix = problem.matrix
    power = 1 - 1 / alpha
    middle = float(np.exp(np.log(problem.scale).mean()))
    constant = (problem.scale / middle) ** power
    x = constant ** (alpha / (1 + alpha))
    best, least, stalled, settled = x, np.inf, 0, 0
    exact: NDArray[np.longdouble] | None = None
    suspected, null = False, x

    def objective(x: Array) -> float:
        gain = np.log(x) if power == 0 else x**power / power
        return float(x @ matrix @ x) / 2 - float(constant @ gain)

    for _ in range(STEPS):
        image = matrix @ x
        energy = x @ image
        if energy <= SUSPECT * (x @ x) and not suspected:
            suspected = True
            null = shortest(problem)
            if null @ matrix @ null <= NULL * (null @ null):
                return null, np.inf
        if energy <= NULL * (x @ x):
            return null, np.inf
        x = ((constant * x**power).sum() / energy) ** (1 / (2 - power)) * x
        image = matrix @ x if exact is None else (exact @ x).astype(np.float64)
        wanted = constant * x ** (-1 / alpha)
        gradient = image - wanted
        residual = float(np.abs(gradient / wanted).max())
        stalled = 0 if residual < least / 2 else stalled + 1
        near = least < 1e-5
        if residual < least:
            best, least = x, residual
        if least <= TOLERANCE or settled > 3 or (near and stalled and exact is not None):
            break
        if near and stalled:
            exact = matrix.astype(np.longdouble)
        far = image > 3 * wanted
        if far.any():
            leap = x.copy()
            leap[far] = (image[far] / constant[far]) ** -alpha
            if objective(leap) < objective(x):
                x = leap
                continue
        hessian = matrix.copy()
        hessian.flat[:: len(x) + 1] += wanted / (alpha * x) + RIDGE * len(x)
        direction = np.linalg.solve(hessian, -gradient)
        decrement = -(gradient @ direction)
        settled += bool(decrement < SETTLED * (x @ image))
        reach = -(direction / x).min()
        length = 1.0 if reach < 0.95 else 0.95 / reach
        if decrement > 1e-8:
            moved = matrix @ direction
            for _ in range(HALVINGS):
                if (image + length * moved - constant * (x + length * direction) ** (-1 / alpha)) @ direction <= decrement / 2:
                    break
                length /= 2
        x = x + length * direction
    return best * middle ** (power * alpha / (1 + alpha)), least
