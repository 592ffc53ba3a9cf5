"""Convex solids: where a ray enters and leaves them, and which way their surface looks."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Quadric:
    """The solid x² + z² + weight·(y - centre)² <= level between y = 0 and y = 1.

    Attributes:
        weight: 1 for a sphere, 0 for a cylinder, negative for a cone.
        centre: height of the centre or of the cone's tip.
        level: squared radius at the centre.
    """

    weight: float
    centre: float
    level: float

    def interval(self, start: list[Array], step: list[Array]) -> tuple[Array, Array]:
        """Where start + t·step enters and leaves; enter >= leave or NaN where the ray misses."""
        (x, y, z), (dx, dy, dz) = start, step
        y = y - self.centre
        a = dx * dx + dz * dz + self.weight * dy * dy
        b = x * dx + z * dz + self.weight * y * dy
        c = x * x + z * z + self.weight * y * y - self.level
        root = np.sqrt(b * b - a * c)
        # A ray steeper than a cone's side has a < 0; such rays start above the tip and are left out (see World).
        enter, leave = (-b - root) / a, (root - b) / a
        low, high = _slab(y + self.centre, dy, 0.0, 1.0)
        return np.maximum(enter, low), np.minimum(leave, high)

    def normal(self, x: Array, y: Array, z: Array) -> list[Array]:
        """Outward direction at points of the surface, any length."""
        if self.weight:
            return [x, self.weight * (y - self.centre), z]
        top = y > 0.999
        return [np.where(top, 0, x), np.where(top, 1, 0), np.where(top, 0, z)]


class Cuboid:
    """The unit box on the floor."""

    def interval(self, start: list[Array], step: list[Array]) -> tuple[Array, Array]:
        """As :meth:`Quadric.interval`."""
        slabs = [_slab(s, d, *ends) for s, d, ends in zip(start, step, ((-0.5, 0.5), (0.0, 1.0), (-0.5, 0.5)), strict=True)]
        (a, b), (c, d), (e, f) = slabs
        return np.maximum(np.maximum(a, c), e), np.minimum(np.minimum(b, d), f)

    def normal(self, x: Array, y: Array, z: Array) -> list[Array]:
        """As :meth:`Quadric.normal`."""
        point = np.stack([x, y - 0.5, z])
        return list(np.where(np.abs(point) == np.abs(point).max(0), np.sign(point), 0))


def _slab(start: Array, step: Array, low: float, high: float) -> tuple[Array, Array]:
    one, other = (low - start) / step, (high - start) / step
    return np.minimum(one, other), np.maximum(one, other)


SOLIDS: dict[str, Quadric | Cuboid] = {
    "sphere": Quadric(1.0, 0.5, 0.25),
    "box": Cuboid(),
    "cylinder": Quadric(0.0, 0.0, 0.25),
    "cone": Quadric(-0.25, 1.0, 0.0),
}
"""The solids of diameter 1 and height 1."""
SHAPES = tuple(SOLIDS)


@dataclass(frozen=True)
class Body:
    """A solid standing on the floor.

    Attributes:
        shape: one of ``SHAPES``.
        colour: 0..1, as displayed, [3].
        x, z: where it stands, metres to the right of the camera and (negative) in front of it.
        width, height: metres.
        yaw: turn about the vertical, radians.
    """

    shape: str
    colour: tuple[float, float, float]
    x: float
    z: float
    width: float
    height: float
    yaw: float = 0.0

    def local(self, x: Array, y: Array, z: Array) -> list[Array]:
        """World directions (or places relative to the foot) in the unit solid's frame."""
        c, s = np.cos(self.yaw) / self.width, np.sin(self.yaw) / self.width
        return [c * x - s * z, y / self.height, s * x + c * z]

    @property
    def reach(self) -> float:
        """Half the side of its bounding square on the floor, metres."""
        turn = abs(np.cos(self.yaw)) + abs(np.sin(self.yaw)) if self.shape == "box" else 1.0
        return 0.5 * self.width * float(turn)

    def normals(self, x: Array, y: Array, z: Array) -> Array:
        """Unit normals in the world, [3, N], at surface points given in the unit solid's frame."""
        a, b, c = SOLIDS[self.shape].normal(x, y, z)
        cos, sin = np.cos(self.yaw) / self.width, np.sin(self.yaw) / self.width
        normal = np.stack([cos * a + sin * c, b / self.height, cos * c - sin * a])
        unit: Array = normal / np.sqrt((normal * normal).sum(0))
        return unit
