"""The min-norm point of the gradients' convex hull, and CAGrad's problem, by an active-set method."""

import math

import numpy as np
from numpy.typing import NDArray

from mtl_lightning.weighting.solvers.scaling import Array, Scaled

EPSILON = 2.0**-52
RIDGE = 8 * EPSILON
NULL = 1e-10

Face = NDArray[np.intp]


class Hull:
    """Minimises F(w) = b^T w + k |J^T w| over w >= 0, sum w = 1.

    With b = 0 that is the min-norm point, with b = G 1/P and k = c |g_0| it is CAGrad's problem. All is done in the scaled
    variables x = w / a, where the simplex is a^T x = 1 and a is 1 for the shortest gradient and less for longer ones.

    On the affine hull of a face the minimum is known: with x_0 its point of least norm and x_1 the solution of
    A x_1 = const a - b with a^T x_1 = 0, it is x_0 + s x_1, where s = |J^T w| / k gives s^2 = |x_0|^2 / (k^2 - |x_1|^2);
    if the bracket is not positive, F falls along x_1 for ever. The method goes from face to face, F decreasing, as Wolfe's
    does (Finding the nearest point in a polytope, Mathematical Programming 1976), but begins with all tasks and adds several
    at a time as long as that decreases F. A ridge of the size of rounding keeps the systems of equal gradients solvable.

    Args:
        problem: the Gramian, at least one row.
        linear: [K] b; None is 0.
        radius: k > 0.
    """

    def __init__(self, problem: Scaled, linear: Array | None = None, radius: float = 1.0) -> None:
        top = float(problem.scale.max())
        self.a = problem.scale / top
        self.matrix = problem.matrix
        self.size = len(self.a)
        self.shifted = self.matrix + self.a[:, None] * self.a
        self.shifted.flat[:: self.size + 1] *= 1 + RIDGE * self.size
        self.radius = radius * top
        self.b = np.zeros(0) if linear is None else problem.scale * linear * top
        self.slack = np.full(self.size, 4 * EPSILON * self.size)
        if linear is not None:
            self.slack += 1e-12 * (np.abs(self.b) + self.radius)

    def block(self, matrix: Array, face: Face) -> Array:
        """Rows and columns of a face."""
        return matrix if len(face) == self.size else matrix[face[:, None], face]

    def best_on(self, face: Face) -> tuple[Array, float]:
        """The minimiser on the affine hull of a face, and s; or the ray along which F falls, and 0."""
        matrix, a = self.block(self.shifted, face), self.a[face]
        if not len(self.b):
            x = np.linalg.solve(matrix, a)
            return x / (a @ x), 1.0
        both = np.linalg.solve(matrix, np.stack((a, self.b[face]), 1))
        nearest = both[:, 0] / (a @ both[:, 0])
        along = (a @ both[:, 1]) * nearest - both[:, 1]
        plain = self.block(self.matrix, face)
        room = self.radius**2 - float(along @ plain @ along)
        if room <= 1e-12 * self.radius**2:
            return along, 0.0
        speed = math.sqrt(max(float(nearest @ plain @ nearest), self.null(nearest)) / room)
        return nearest + speed * along, speed

    def null(self, x: Array) -> float:
        """The squared norm of a combination below which it is rounding."""
        return NULL + 64 * EPSILON * float(x @ x)

    def peel(self, face: Face) -> tuple[Face, Array, float]:
        """Leave out what the face's minimiser does not want until it wants all that is left."""
        while True:
            x, speed = self.best_on(face)
            wanted = x > 0
            if wanted.all():
                return face, x, speed
            face = face[wanted]

    def descend(self, face: Face, x: Array) -> tuple[Face, Array, float]:
        """From a point of a face towards the face's minimiser, leaving out the task at each border met."""
        while True:
            goal, speed = self.best_on(face)
            if speed and (goal > 0).all():
                return face, goal, speed
            step = goal - x if speed else goal
            limited = (step < 0) & ((goal <= 0) | (speed == 0))
            ratio = np.full(len(x), np.inf)
            ratio[limited] = x[limited] / -step[limited]
            first = int(ratio.argmin())
            keep = np.arange(len(x)) != first
            face, x = face[keep], np.maximum(x + ratio[first] * step, 0.0)[keep]

    def whole(self, face: Face, x: Array) -> tuple[Array, float]:
        """A point of a face with its zeros, and F (the squared norm where b is 0)."""
        point = np.zeros(self.size)
        point[face] = x
        norm = max(float(point @ self.matrix @ point), 0.0)
        return point, float(self.b @ point) + self.radius * math.sqrt(norm) if len(self.b) else norm

    def solve(self) -> tuple[Array, float]:
        """The minimiser x [K], and s = |J^T w| / k (1 where b is 0)."""
        face, part, speed = self.peel(np.arange(self.size))
        point, value = self.whole(face, part)
        for _ in range(10 * self.size):
            slope = self.matrix @ point / speed
            if len(self.b):
                slope += self.b
            level = float(slope @ point)
            excess = slope - level * self.a
            missing = excess < -self.slack * max(float(point.max()), 1.0) - 1e-9 * abs(level) * self.a
            missing[face] = False
            if not missing.any():
                break
            tried = self.peel(np.union1d(face, missing.nonzero()[0]))
            found, less = self.whole(*tried[:2])
            if not less < value:
                tried = self.descend(np.append(face, np.where(missing, excess, np.inf).argmin()), np.append(part, 0.0))
                found, less = self.whole(*tried[:2])
                if not less < value:
                    break
            face, part, speed = tried
            point, value = found, less
        return point, speed

    def gap(self, x: Array) -> float:
        """The relative duality gap of the min-norm problem; 0 where the norm is rounding."""
        image = self.matrix @ x
        norm = float(x @ image)
        return 0.0 if norm <= self.null(x) else (norm - float((image / self.a).min())) / norm

    def sharpen(self, x: Array) -> Array:
        """Keep the products of long gradients with the min-norm point on the safe side of rounding.

        Beside short gradients the rounding of these products can dominate the duality gap. A surplus as large as the rounding
        costs nothing, because a long gradient's weight is tiny.
        """
        best, least = x, self.gap(x)
        surplus = 4 * EPSILON * (np.abs(self.matrix) @ x)
        for _ in range(4):
            if least <= 1e-8:
                break
            image = self.matrix @ x
            lack = float(x @ image) * self.a + surplus - image
            face = ((x > 0) | (lack > 0)).nonzero()[0]
            x = x.copy()
            x[face] += np.linalg.solve(self.block(self.shifted, face), lack[face])
            x = np.maximum(x, 0.0)
            x /= self.a @ x
            gap = self.gap(x)
            if gap < least:
                best, least = x, gap
            surplus = 2 * surplus
        return best


def share(problem: Scaled, x: Array) -> Array:
    """Give equal gradients equal weights; only their sum matters to the direction."""
    diagonal = problem.matrix.diagonal()
    twins = diagonal[:, None] + diagonal - 2 * problem.matrix <= 64 * EPSILON
    if np.count_nonzero(twins) == len(x):
        return x
    twins &= problem.scale[:, None] == problem.scale
    return np.asarray((twins @ x) / twins.sum(1), dtype=np.float64)


def min_norm(problem: Scaled) -> Array:
    """Weights [K] >= 0 with sum 1 whose combination of the gradients is shortest.

    The relative duality gap (w^T G w - min of G w) / w^T G w is at most 1e-6 wherever the shortest combination is longer than
    1e-5 times the shortest gradient and 1e-7 times the longest summand; below that its length is rounding. A Gramian that
    rounding left indefinite (of gradients in float32, say) is made semidefinite first where that matters.

    Args:
        problem: the Gramian, at least one row.
    """
    hull = Hull(problem)
    x = hull.sharpen(hull.solve()[0])
    if hull.gap(x) > 1e-6:
        hull = Hull(problem.semidefinite())
        x = hull.sharpen(hull.solve()[0])
    weights: Array = hull.a * share(problem, x)
    return weights / float(weights.sum())


def averse(problem: Scaled, c: float) -> Array:
    """Weights [K] of CAGrad's direction, g_0 + c |g_0| g_w / |g_w|.

    Args:
        problem: the Gramian, at least one row.
        c: >= 0.
    """
    size = len(problem.kept)
    mean = np.full(size, 1 / size)
    x = mean / problem.scale
    image = problem.matrix @ x
    squared = float(x @ image)
    if c == 0 or squared <= 1e-13 * float(x @ (problem.matrix.diagonal() * x)):
        return mean
    hull = Hull(problem, image / problem.scale, c * math.sqrt(squared))
    x, speed = hull.solve()
    return mean + hull.a * share(problem, x) / speed
