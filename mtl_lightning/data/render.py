"""A small ray tracer in numpy: a few lit solids on a floor, with the exact labels of every pixel.

Every solid is convex, so a ray meets it in one interval of distances; the same interval gives what the camera sees and what
lies in shadow. Each solid is only met by the pixels inside the bounding rectangle of itself or of its shadow.
"""

from dataclasses import dataclass

import numpy as np

from mtl_lightning.data.solids import SOLIDS, Array, Body

FAR = 12.0
"""Metres along the camera axis at which the floor ends."""
SKY, FLOOR, FIRST = 0, 1, 2
"""What a pixel shows: no surface, the floor, or the first of the bodies."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above the origin, looking towards -z.

    Attributes:
        height: metres above the floor.
        pitch: downwards, radians.
        roll: about its axis, radians.
        focal: focal length over half the picture's shorter side.
    """

    height: float
    pitch: float
    roll: float = 0.0
    focal: float = 2.2

    @property
    def axes(self) -> Array:
        """Rows: right, up and towards the viewer, in world coordinates [3, 3]."""
        c, s = np.cos(self.pitch), np.sin(self.pitch)
        right, up, back = np.array([1.0, 0, 0]), np.array([0, c, -s]), np.array([0, s, c])
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        return np.stack([cos * right + sin * up, cos * up - sin * right, back])

    def rays(self, rows: Array, columns: Array, size: tuple[int, int]) -> Array:
        """World directions [3, len(rows), len(columns)] through picture coordinates in pixels; 1 metre along the axis."""
        unit = self.focal * min(size) / 2
        right, up, back = self.axes
        across = right[:, None] * ((columns - size[1] / 2) / unit) - back[:, None]
        down = up[:, None] * ((size[0] / 2 - rows) / unit)
        rays: Array = (down[:, :, None] + across[:, None, :]).astype(np.float32)
        return rays

    def project(self, points: Array, size: tuple[int, int]) -> tuple[Array, Array]:
        """World points [..., 3] as rows and columns in pixels."""
        seen = (points - np.array([0, self.height, 0])) @ self.axes.T
        unit = self.focal * min(size) / 2 / np.maximum(-seen[..., 2], 0.1)
        return size[0] / 2 - seen[..., 1] * unit, size[1] / 2 + seen[..., 0] * unit


@dataclass(frozen=True)
class World:
    """What is rendered.

    Attributes:
        bodies: they must not overlap. Neither the light nor a camera ray that meets a cone may be steeper than its side.
        camera: where it is seen from.
        light: unit direction towards the light, in the world.
        floor: two colours 0..1, as displayed; the floor is checkered where they differ.
        sky: the colour behind everything.
        tiles: side of a floor tile in metres and its turn in radians.
        ambient: share of light that comes from everywhere.
    """

    bodies: tuple[Body, ...]
    camera: Camera
    light: tuple[float, float, float]
    floor: tuple[tuple[float, float, float], tuple[float, float, float]]
    sky: tuple[float, float, float]
    tiles: tuple[float, float] = (0.8, 0.0)
    ambient: float = 0.3


class Trace:
    """What every sample point of the picture shows.

    There is a sample at the centre, the edges and the corners of each pixel: the labels are those of the centres, the picture
    is a tent-weighted mean of all nine.

    Args:
        world: what is there.
        size: height and width in pixels.
    """

    def __init__(self, world: World, size: tuple[int, int]) -> None:
        self.world, self.size = world, size
        self.rays = world.camera.rays(np.arange(2 * size[0] + 1) / 2, np.arange(2 * size[1] + 1) / 2, size)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = -world.camera.height / self.rays[1]
            floor = (distance > 0) & (distance < FAR)
            self.depth = np.where(floor, distance, np.inf).astype(np.float32)
            self.ids: Array = floor.astype(np.uint8)
            self.windows = self._windows()
            for index, body in enumerate(world.bodies):
                self._draw(index, body)

    def _windows(self) -> list[list[tuple[slice, slice]]]:
        # The shadow of a convex body lies within the hull of its bounding box and of that box's shadow on the floor.
        boxes = np.array([[body.x, body.z, body.reach, body.height] for body in self.world.bodies])
        corners = np.array([[i, j, k] for i in (-1, 1) for j in (0, 1) for k in (-1, 1)])
        x, z, half, high = boxes.T[:, :, None]
        points = np.stack([x + half * corners[:, 0], high * corners[:, 1], z + half * corners[:, 2]], -1)
        cast = points - points[..., 1:2] / self.world.light[1] * np.array(self.world.light)
        return [self._rectangles(points), self._rectangles(np.concatenate([points, cast], 1))]

    def _rectangles(self, points: Array) -> list[tuple[slice, slice]]:
        ends = []
        for values, limit in zip(self.world.camera.project(points, self.size), self.size, strict=True):
            low = np.clip(np.floor(2 * values.min(1)), 0, 2 * limit).astype(int)
            high = np.clip(np.ceil(2 * values.max(1)), 0, 2 * limit).astype(int)
            ends.append([slice(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True)])
        return list(zip(*ends, strict=True))

    def _draw(self, index: int, body: Body) -> None:
        window = self.windows[0][index]
        step = body.local(*self.rays[:, *window])
        start = body.local(*np.array([-body.x, self.world.camera.height, -body.z], np.float32))
        enter, leave = SOLIDS[body.shape].interval(start, step)
        seen = (enter < leave) & (enter > 0) & (enter < self.depth[window])
        np.copyto(self.depth[window], enter, where=seen)
        np.copyto(self.ids[window], FIRST + index, where=seen)

    def picture(self, colours: Array) -> Array:
        """Filter [C, 2H + 1, 2W + 1] samples to [C, H, W] pixels."""
        rows = colours[:, 1::2] * 0.5 + (colours[:, :-1:2] + colours[:, 2::2]) * 0.25
        picture: Array = rows[..., 1::2] * 0.5 + (rows[..., :-1:2] + rows[..., 2::2]) * 0.25
        return picture

    def surfaces(self) -> tuple[Array, Array]:
        """World places and unit normals [3, 2H + 1, 2W + 1]; sky has the place of the camera's foot and a zero normal."""
        depth = np.where(self.ids == SKY, 0, self.depth)
        places = self.rays * depth
        places[1] += self.world.camera.height
        normals = np.zeros_like(self.rays)
        normals[1] = self.ids == FLOOR
        for index, body in enumerate(self.world.bodies):
            window = self.windows[0][index]
            rows, columns = np.nonzero(self.ids[window] == FIRST + index)
            rows, columns = rows + window[0].start, columns + window[1].start
            x, y, z = places[:, rows, columns]
            normals[:, rows, columns] = body.normals(*body.local(x - body.x, y, z - body.z))
        return places, normals

    def lit(self, places: Array) -> Array:
        """1 where light reaches the surface, 0 in the shadow of another body, [2H + 1, 2W + 1]."""
        lit = np.ones_like(self.depth)
        with np.errstate(divide="ignore", invalid="ignore"):
            for index, body in enumerate(self.world.bodies):
                window = self.windows[1][index]
                x, y, z = places[:, *window]
                step = body.local(*np.array(self.world.light, np.float32))
                enter, leave = SOLIDS[body.shape].interval(body.local(x - body.x, y, z - body.z), step)
                lit[window][(enter < leave) & (leave > 0) & (self.ids[window] != FIRST + index)] = 0
        return lit

    def shade(self, places: Array, normals: Array) -> Array:
        """The picture 0..1 as displayed, [3, H, W]: Lambert light, highlights (Blinn, 1977), shadows and a checkered floor."""
        world = self.world
        light, lit = np.array(world.light, np.float32), self.lit(places)
        facing = np.maximum(np.tensordot(light, normals, 1), 0) * lit
        brightness = world.ambient * (0.75 + 0.25 * normals[1]) + (1.1 - world.ambient) * facing
        brightness[self.ids == SKY] = 1
        # Colours are squared so that light adds up as it does in the world; the root at the end undoes it.
        paints = np.array([world.sky, world.floor[0], *(body.colour for body in world.bodies), world.floor[1]], np.float32) ** 2
        colours = np.take(paints.T, self._paint(places, len(paints) - 1), axis=1) * brightness
        colours += self._highlights(light, normals) * (facing > 0)
        picture: Array = np.sqrt(np.minimum(self.picture(colours), 1))
        return picture

    def _paint(self, places: Array, other: int) -> Array:
        # The floor's second colour stands last in the list of paints.
        if self.world.floor[0] == self.world.floor[1]:
            return self.ids
        side, turn = self.world.tiles
        c, s = np.float32(np.cos(turn) / side), np.float32(np.sin(turn) / side)
        across, along = np.floor(c * places[0] + s * places[2]), np.floor(c * places[2] - s * places[0])
        odd = (across + along).astype(np.int16) & 1
        paint: Array = np.where((self.ids == FLOOR) & (odd == 1), np.uint8(other), self.ids)
        return paint

    def _highlights(self, light: Array, normals: Array) -> Array:
        highlights = np.zeros(self.depth.shape, np.float32)
        bodies = np.flatnonzero(self.ids >= FIRST)
        ways = self.rays.reshape(3, -1)[:, bodies]
        half = light[:, None] - ways / np.sqrt((ways * ways).sum(0))
        gloss = (normals.reshape(3, -1)[:, bodies] * half).sum(0) / np.sqrt((half * half).sum(0))
        for _ in range(5):
            gloss = gloss * gloss
        highlights.flat[bodies] = 0.35 * gloss
        return highlights
