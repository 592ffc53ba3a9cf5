"""Random scenes: what stands where, in which light, and every label of the picture."""

import math
from dataclasses import dataclass

import numpy as np

from mtl_lightning.data.render import FIRST, SKY, Camera, Trace, World
from mtl_lightning.data.solids import SHAPES, Array, Body

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.22, 0.20),
    "yellow": (0.96, 0.82, 0.20),
    "green": (0.28, 0.70, 0.30),
    "cyan": (0.30, 0.82, 0.86),
    "blue": (0.22, 0.38, 0.92),
    "purple": (0.66, 0.30, 0.80),
}
SURFACES = ("background", "ground", *SHAPES)
"""The classes of a pixel."""
PRESENT = (*SHAPES, *COLOURS)
"""What may be visible."""
FLOORS = ((0.78, 0.75, 0.70), (0.62, 0.62, 0.64), (0.72, 0.66, 0.58), (0.55, 0.58, 0.60))
SKIES = ((0.80, 0.87, 0.94), (0.88, 0.88, 0.88), (0.93, 0.89, 0.82))
MOST = 5
"""Bodies in a scene at most."""


@dataclass(frozen=True)
class Scene:
    """A picture and all that is known about it.

    A body counts as visible where it shows at least 12 pixels of 64 x 64 (the same share of other sizes). ``n`` is the number
    of visible bodies, largest (in pixels) first; the first shows at least a quarter more pixels than the second.

    Attributes:
        image: uint8 [C, H, W].
        segmentation: index into ``SURFACES``, uint8 [H, W].
        depth: metres along the camera's axis, float32 [H, W], 0 where there is no surface.
        normals: unit, x right, y up, z towards the viewer, float32 [3, H, W]; zero where there is no surface.
        shapes: index into ``SHAPES``, int64 [n].
        colours: index into ``COLOURS``, int64 [n].
        instances: the visible pixels of each body, bool [n, H, W].
        boxes: around the visible pixels: left, top, right, bottom in pixels, float32 [n, 4].
        world: what was rendered.
    """

    image: Array
    segmentation: Array
    depth: Array
    normals: Array
    shapes: Array
    colours: Array
    instances: Array
    boxes: Array
    world: World

    @property
    def present(self) -> Array:
        """Which of ``PRESENT`` is visible, float32 0/1."""
        present = np.zeros(len(PRESENT), np.float32)
        present[self.shapes] = 1
        present[len(SHAPES) + self.colours] = 1
        return present


def draw_scene(rng: np.random.Generator, size: tuple[int, int], channels: int = 3) -> Scene:
    """Draw a scene; the same generator state gives the same scene.

    Args:
        rng: all randomness comes from here.
        size: height and width of the picture, at least 16.
        channels: 3 for colour, 1 for grey.
    """
    enough = 12 * size[0] * size[1] / 64**2
    count = int(rng.integers(1, MOST + 1))
    while True:
        trace = Trace(_world(rng, count, size), size)
        ids = trace.ids[1::2, 1::2]
        pixels = np.bincount(ids.ravel(), minlength=FIRST + count)[FIRST:]
        order = np.argsort(-pixels, kind="stable")
        visible = order[pixels[order] >= enough]
        # A lone body is always visible, and the largest: the loop ends.
        if count == 1 or (len(visible) and pixels[visible[0]] >= 1.25 * pixels[visible[1:2]].sum()):
            break
        count -= 1
    return _label(rng, trace, visible, channels)


def _world(rng: np.random.Generator, count: int, size: tuple[int, int]) -> World:
    camera = Camera(
        height=rng.uniform(2.2, 2.7), pitch=rng.uniform(0.40, 0.48), roll=rng.uniform(-0.05, 0.05), focal=rng.uniform(2.1, 2.4)
    )
    bodies: list[Body] = []
    for _ in range(20 * count):
        body = _body(rng, camera, size, first=not bodies)
        if all(math.hypot(body.x - other.x, body.z - other.z) > 1.05 * _clearance(body, other) for other in bodies):
            bodies.append(body)
        if len(bodies) == count:
            break
    # Steeper light would break the rule of World for the flattest cone; from behind, the visible sides would be dark.
    height, turn = rng.uniform(0.65, 0.95), rng.uniform(-1.6, 1.6)
    light = (math.cos(height) * math.sin(turn), math.sin(height), math.cos(height) * math.cos(turn))
    floor = np.array(FLOORS[rng.integers(len(FLOORS))])
    other = floor * (rng.uniform(0.7, 0.85) if rng.random() < 0.6 else 1)
    sky = SKIES[rng.integers(len(SKIES))]
    tiles = (rng.uniform(0.6, 1.0), rng.uniform(0, math.pi / 2))
    return World(tuple(bodies), camera, light, (tuple(floor), tuple(other)), sky, tiles, ambient=rng.uniform(0.28, 0.4))


def _body(rng: np.random.Generator, camera: Camera, size: tuple[int, int], first: bool) -> Body:
    # The first is large and near, so that one body nearly always is clearly the largest.
    width = rng.uniform(1.15, 1.5) if first else rng.uniform(0.65, 1.0)
    away = rng.uniform(3.8, 4.8) if first else rng.uniform(3.6, 6.8)
    side = size[1] / min(size) / camera.focal * away * (0.6 if first else 0.8)
    shape = SHAPES[rng.integers(len(SHAPES))]
    colour = list(COLOURS.values())[rng.integers(len(COLOURS))]
    x, stretch, yaw = rng.uniform(-side, side), rng.uniform(0.85, 1.2), rng.uniform(0, math.pi / 2)
    width *= 0.85 if shape == "box" else 1
    return Body(shape, colour, x, -away, width, width * (1 if shape == "sphere" else stretch), yaw)


def _clearance(one: Body, other: Body) -> float:
    return sum(body.width * (0.71 if body.shape == "box" else 0.5) for body in (one, other))


def _label(rng: np.random.Generator, trace: Trace, visible: Array, channels: int) -> Scene:
    world = trace.world
    places, normals = trace.surfaces()
    picture = trace.shade(places, normals)
    if channels == 1:
        picture = np.tensordot(np.array([[0.299, 0.587, 0.114]], np.float32), picture, 1)
    noise = rng.standard_normal(picture.shape, np.float32) * rng.uniform(0.005, 0.02)
    image = np.clip((picture + noise) * 255 + 0.5, 0, 255).astype(np.uint8)
    ids = trace.ids[1::2, 1::2]
    shapes = np.array([SHAPES.index(body.shape) for body in world.bodies])
    colours = np.array([list(COLOURS.values()).index(body.colour) for body in world.bodies])
    classes = np.concatenate([[0, 1], FIRST + shapes]).astype(np.uint8)
    instances = ids == (FIRST + visible)[:, None, None]
    return Scene(
        image=image,
        segmentation=classes[ids],
        depth=np.where(ids == SKY, 0, trace.depth[1::2, 1::2]),
        normals=np.tensordot(world.camera.axes.astype(np.float32), normals[:, 1::2, 1::2], 1),
        shapes=shapes[visible],
        colours=colours[visible],
        instances=instances,
        boxes=np.array([_box(mask) for mask in instances], np.float32),
        world=world,
    )


def _box(mask: Array) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
