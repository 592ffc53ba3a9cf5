import colorsys
import math
import pickle
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mtl_lightning.data.quantities import QUANTITIES
from mtl_lightning.data.render import FAR, FIRST, Camera, Trace, World
from mtl_lightning.data.scenes import ScenesDataModule, ScenesDataset
from mtl_lightning.data.solids import SHAPES, Body
from mtl_lightning.data.transforms import finish
from mtl_lightning.data.world import COLOURS, PRESENT, SURFACES, Scene, draw_scene
from mtl_lightning.errors import ConfigError
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.classification import Classification
from mtl_lightning.tasks.depth import Depth
from mtl_lightning.tasks.multilabel import MultiLabel
from mtl_lightning.tasks.normals import SurfaceNormals
from mtl_lightning.tasks.regression import Regression
from mtl_lightning.tasks.segmentation import SemanticSegmentation

SIZE = (48, 64)
CAMERA = Camera(height=2.0, pitch=0.35, roll=0.1, focal=2.0)


def world(*bodies: Body, light: tuple[float, float, float] = (0.6, 0.8, 0.0)) -> World:
    return World(bodies, CAMERA, light, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), (0.9, 0.9, 0.9))


def body(shape: str, x: float = 0.1, z: float = -4.0, width: float = 1.2, height: float = 1.2, yaw: float = 0.4) -> Body:
    return Body(shape, COLOURS["red"], x, z, width, height, yaw)


def unproject(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Points in the camera's frame, written down from the pinhole model and the depth alone."""
    height, width = depth.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    unit = camera.focal * min(height, width) / 2
    return np.stack([(columns - width / 2) / unit * depth, (height / 2 - rows) / unit * depth, -depth])


def to_world(points: np.ndarray, camera: Camera) -> np.ndarray:
    """From the camera's frame: turn about the axis by the roll, then down by the pitch, then lift by the height."""
    x, y, z = points
    c, s = math.cos(camera.roll), math.sin(camera.roll)
    x, y = c * x - s * y, s * x + c * y
    c, s = math.cos(camera.pitch), math.sin(camera.pitch)
    return np.stack([x, c * y + s * z + camera.height, c * z - s * y])


def labels(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, depth, and normals in the camera's frame at the pixel centres."""
    _, normals = trace.surfaces()
    return trace.ids[1::2, 1::2], trace.depth[1::2, 1::2], np.tensordot(trace.world.camera.axes, normals[:, 1::2, 1::2], 1)


def scenes(count: int, size: tuple[int, int] = (64, 64), channels: int = 3) -> list[Scene]:
    return [draw_scene(np.random.default_rng([7, index]), size, channels) for index in range(count)]


def test_sphere_has_the_depth_normals_and_outline_of_the_closed_form() -> None:
    ids, depth, normals = labels(Trace(world(body("sphere")), SIZE))
    seen = ids == FIRST
    points = to_world(unproject(np.where(seen, depth, 0), CAMERA), CAMERA)[:, seen]
    offset = points - np.array([[0.1], [0.6], [-4.0]])
    assert np.allclose(np.linalg.norm(offset, axis=0), 0.6, atol=1e-4)
    turned = to_world(normals.reshape(3, -1), CAMERA).reshape(normals.shape)[:, seen] - np.array([[0], [CAMERA.height], [0]])
    assert np.allclose(turned, offset / 0.6, atol=1e-3)
    # A ray hits the sphere exactly if it passes the centre at less than the radius.
    ways = to_world(unproject(np.ones(SIZE), CAMERA), CAMERA) - np.array([0, CAMERA.height, 0])[:, None, None]
    ways /= np.linalg.norm(ways, axis=0)
    centre = np.array([0.1, 0.6 - CAMERA.height, -4.0])
    missed = np.sqrt(centre @ centre - np.tensordot(centre, ways, 1) ** 2)
    assert seen.sum() > 50 and np.array_equal(seen, missed < 0.6)


@pytest.mark.parametrize("shape", SHAPES)
def test_seen_points_lie_on_the_solid(shape: str) -> None:
    solid = body(shape, height=1.2 if shape == "sphere" else 1.0)
    ids, depth, _ = labels(Trace(world(solid), SIZE))
    x, y, z = to_world(unproject(np.where(ids == FIRST, depth, 0), CAMERA), CAMERA)[:, ids == FIRST]
    x, z = x - solid.x, z - solid.z
    x, z = math.cos(solid.yaw) * x - math.sin(solid.yaw) * z, math.sin(solid.yaw) * x + math.cos(solid.yaw) * z
    radius, half, high = np.hypot(x, z), solid.width / 2, solid.height
    gap = {
        "sphere": np.hypot(radius, y - 0.6) - 0.6,
        "box": np.max([np.abs(x) - half, np.abs(z) - half, np.abs(y - high / 2) - high / 2], 0),
        "cylinder": np.maximum(radius - half, np.abs(y - high / 2) - high / 2),
        "cone": radius - half * (1 - y / high),
    }[shape]
    assert len(gap) > 50 and np.abs(gap).max() < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_perpendicular_to_the_surface_that_depth_describes(shape: str) -> None:
    ids, depth, normals = labels(Trace(world(body(shape)), (128, 128)))
    points = unproject(np.where(np.isfinite(depth), depth, 0), CAMERA)
    across, down = points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    cross = np.cross(down, across, axis=0)
    cross /= np.maximum(np.linalg.norm(cross, axis=0), 1e-9)
    inner = normals[:, 1:-1, 1:-1]
    whole = np.all([ids[1 + i : 127 + i, 1 + j : 127 + j] == FIRST for i in (-1, 0, 1) for j in (-1, 0, 1)], 0)
    angles = np.degrees(np.arccos(np.clip((cross * inner).sum(0), -1, 1)))[whole]
    assert np.median(angles) < 1.0 and np.mean(angles < 6) > 0.85  # the rest: edges of boxes and cylinders
    assert np.allclose(np.linalg.norm(normals[:, ids > 0], axis=0), 1, atol=1e-5)
    assert ((inner * points[:, 1:-1, 1:-1]).sum(0)[whole] < 0).all()


def test_ground_is_the_plane_under_the_camera_and_ends() -> None:
    ids, depth, normals = labels(Trace(world(body("cone")), SIZE))
    ground = ids == 1
    points = to_world(unproject(np.where(ground, depth, 0), CAMERA), CAMERA)
    assert np.abs(points[1][ground]).max() < 1e-4 and depth[ground].max() < FAR
    up = CAMERA.axes @ np.array([0, 1, 0])
    assert np.allclose(normals[:, ground], up[:, None]) and up[1] > 0.9
    assert (normals[:, ids == 0] == 0).all() and (ids == 0).any()


def test_the_nearer_body_hides_the_other() -> None:
    near, far = body("box", z=-3.5), body("sphere", x=0.1, z=-5.5)
    for order in ((near, far), (far, near)):
        trace = Trace(world(*order), SIZE)
        alone = labels(Trace(world(near), SIZE))[0] == FIRST
        assert (trace.ids[1::2, 1::2][alone] == FIRST + order.index(near)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_shadow_falls_away_from_the_light(shape: str) -> None:
    solid = body(shape, x=0.0)
    trace = Trace(world(solid, light=(0.6, 0.8, 0.0)), SIZE)
    places, normals = trace.surfaces()
    lit = trace.lit(places)
    ground = trace.ids == 1
    # The axis' middle, 0.6 m high, throws its shadow 0.45 m to the left; the foot of a wide body covers less than 0.62 m.
    left = ground & (np.abs(places[0] + 0.75) < 0.12) & (np.abs(places[2] + 4.0) < 0.05)
    right = ground & (np.abs(places[0] - 0.9) < 0.12) & (np.abs(places[2] + 4.0) < 0.05)
    if shape in ("box", "cylinder"):
        assert left.any() and (lit[left] == 0).all()
    assert right.any() and (lit[right] == 1).all()
    assert (lit[ground] == 0).any() and places[0][(lit == 0) & ground].mean() < -0.3
    assert (lit[trace.ids == FIRST] == 1).all()
    picture = trace.shade(places, normals)
    assert picture.min() >= 0 and picture.max() <= 1


def test_floor_is_checkered_in_its_two_colours() -> None:
    dark, light = (0.2, 0.2, 0.2), (0.8, 0.8, 0.8)
    shown = World(
        (body("sphere", z=-9.0, width=0.3, height=0.3),), CAMERA, (0.6, 0.8, 0.0), (dark, light), light, (1.0, 0.0), 1.0
    )
    trace = Trace(shown, SIZE)
    places, normals = trace.surfaces()
    picture = trace.shade(places, normals)
    x, z = places[0, 1::2, 1::2], places[2, 1::2, 1::2]
    inside = (trace.ids[1::2, 1::2] == 1) & (np.abs(x % 1 - 0.5) < 0.3) & (np.abs(z % 1 - 0.5) < 0.3) & (z > -4)
    odd = ((np.floor(x) + np.floor(z)) % 2 == 1)[inside]
    assert odd.any() and not odd.all()
    # Everything looks 1 + (1.1 - 1) * 0.8 times as bright as its paint; brightness is squared in display values.
    expected = np.where(odd, 0.8, 0.2) * math.sqrt(1.08)
    assert np.allclose(picture[:, inside], expected, atol=0.01)


def test_labels_of_a_scene_agree_with_each_other() -> None:
    assert {len(scene.shapes) for scene in scenes(60)} == {1, 2, 3, 4, 5}
    for scene in scenes(60):
        areas = scene.instances.sum((1, 2))
        assert 1 <= len(areas) <= 5 and (np.diff(areas) <= 0).all() and areas[-1] >= 12
        assert len(areas) == 1 or areas[0] >= 1.25 * areas[1]
        for mask, box, shape in zip(scene.instances, scene.boxes, scene.shapes, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert (scene.segmentation[mask] == SURFACES.index(SHAPES[shape])).all()
        named = {SHAPES[shape] for shape in scene.shapes} | {list(COLOURS)[colour] for colour in scene.colours}
        assert {PRESENT[index] for index in np.flatnonzero(scene.present)} == named
        up = scene.world.camera.axes @ np.array([0, 1, 0])
        assert np.allclose(scene.normals[:, scene.segmentation == 1], up[:, None], atol=1e-6)
        points = to_world(unproject(scene.depth, scene.world.camera), scene.world.camera)
        assert np.abs(points[1][scene.segmentation == 1]).max() < 1e-3
        surface = scene.segmentation > 0
        assert np.array_equal(scene.depth > 0, surface) and np.array_equal(np.abs(scene.normals).sum(0) > 0, surface)


def test_colours_are_seen_as_they_are_named() -> None:
    hues = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in COLOURS.values()])
    for scene in scenes(40):
        for mask, colour in zip(scene.instances, scene.colours, strict=True):
            hue = colorsys.rgb_to_hsv(*(scene.image[:, mask].mean(1) / 255))[0]
            distance = np.abs((hues - hue + 0.5) % 1 - 0.5)
            assert distance.argmin() == colour


def test_bodies_do_not_overlap_and_light_is_flatter_than_cones() -> None:
    for scene in scenes(60):
        bodies, light = scene.world.bodies, scene.world.light
        for index, one in enumerate(bodies):
            for other in bodies[:index]:
                assert math.hypot(one.x - other.x, one.z - other.z) > 0.5 * (one.width + other.width)
            if one.shape == "cone":
                assert light[1] / math.hypot(light[0], light[2]) < 2 * one.height / one.width


@pytest.mark.parametrize(("size", "channels"), [((32, 80), 1), ((80, 32), 3)])
def test_any_size_and_grey(size: tuple[int, int], channels: int) -> None:
    for scene in scenes(8, size, channels):
        assert scene.image.shape == (channels, *size) and scene.image.dtype == np.uint8
        assert scene.depth.shape == scene.segmentation.shape == size and scene.normals.shape == (3, *size)


ALL = {name: name for name in QUANTITIES}


def dataset(split: str = "train", rows: int = 6, hidden: dict[str, float] | None = None, **options: Any) -> ScenesDataset:
    return ScenesDataset(split, rows, (32, 40), 3, options.pop("seed", 3), options.pop("targets", ALL), hidden or {}, **options)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) if isinstance(one[key], torch.Tensor) else one[key] == other[key] for key in one
    )


def test_bodies_and_light_are_the_scenes_own() -> None:
    data = dataset(rows=20)
    for index in range(20):
        sample, scene = data[index], data.scene(index)
        assert int(sample["bodies"]) + 1 == int(sample["count"]) == len(scene.shapes)
        turn = math.radians(float(sample["light"]))
        right, _, towards = scene.world.light
        assert math.hypot(right, towards) * np.array([math.sin(turn), math.cos(turn)]) == pytest.approx(
            [right, towards], abs=1e-6
        )
    assert QUANTITIES["bodies"].names == ("1", "2", "3", "4", "5")


def test_a_row_depends_on_seed_split_and_index_alone() -> None:
    kept = dataset(hidden={"depth": 0.5}, hidden_pixels=0.3)
    fresh = dataset(rows=9, hidden={"depth": 0.5}, hidden_pixels=0.3, cache=False)
    for index in (4, 0, 5, 1):
        assert same(kept[index], fresh[index]) and same(kept[index], pickle.loads(pickle.dumps(kept))[index])
    loaded = list(DataLoader(fresh, batch_size=1, num_workers=2, collate_fn=itemgetter(0)))
    assert all(same(kept[index], loaded[index]) for index in range(6))
    images = [
        dataset(split, rows=3, seed=seed, cache=False)[i]["image"]
        for split in ("train", "val")
        for seed in (0, 1)
        for i in range(3)
    ]
    assert len({image.numpy().tobytes() for image in images}) == 12


def test_hiding_labels_of_one_task_changes_no_other() -> None:
    few = dataset(rows=400, hidden={"shape": 0.5, "depth": 0.5}, cache=False)
    more = dataset(rows=900, hidden={"shape": 0.5, "depth": 0.9, "count": 1.0}, cache=False)
    assert np.array_equal(few.labelled("shape"), more.labelled("shape")[:400])
    assert (more.labelled("depth")[:400] <= few.labelled("depth")).all()
    assert abs(more.labelled("depth").mean() - 0.1) < 0.03 and abs(more.labelled("shape").mean() - 0.5) < 0.06
    assert not more.labelled("count").any() and more.labelled("box").all()
    assert abs((few.labelled("shape") & few.labelled("depth")).mean() - 0.25) < 0.08
    row = int(np.flatnonzero(~few.labelled("shape") & few.labelled("depth"))[0])
    assert "shape" not in few[row] and "depth" in few[row]


def test_hidden_pixels_are_the_asked_share_in_blobs() -> None:
    open_, masked = dataset(rows=3), dataset(rows=3, hidden_pixels=0.25)
    for index in range(3):
        before, after = finish(open_[index]), finish(masked[index])
        hidden = after["segmentation"] == -1
        assert hidden.sum() == 32 * 40 / 4 and (before["segmentation"] >= 0).all()
        assert torch.equal(after["segmentation"][~hidden], before["segmentation"][~hidden])
        assert (hidden[1:] == hidden[:-1]).float().mean() > 0.9
        for task in ("depth", "normals"):
            gone = (after[task] == 0).all(0) & (before[task] != 0).any(0)
            kept = ~gone
            assert gone.any() and torch.equal(after[task][:, kept], before[task][:, kept])
            assert not torch.equal(gone, hidden & (before[task] != 0).any(0))
        assert all(torch.equal(before[task], after[task]) for task in ("shape", "present", "count", "box"))


def test_targets_are_those_of_finished_samples_and_of_the_scene() -> None:
    for split in (dataset(hidden_pixels=0.2), dataset(hidden_pixels=0.2, cache=False)):
        for task in ALL:
            for _ in range(2):
                targets = list(split.targets(task, [5, 2]))
                assert all(torch.equal(target, finish(split[row])[task]) for target, row in zip(targets, [5, 2], strict=True))
    split = dataset()
    scene, sample = split.scene(1), finish(split[1])
    assert sample["image"].shape == (3, 32, 40) and sample["shape"] == scene.shapes[0] and sample["count"] == len(scene.shapes)
    assert np.allclose(sample["box"] * torch.tensor([40, 32, 40, 32]), scene.boxes[0])
    assert np.array_equal(sample["segmentation"], scene.segmentation)
    assert np.allclose(sample["depth"][0], scene.depth, rtol=1e-3)
    cosine = (sample["normals"].numpy() * scene.normals).sum(0)[scene.segmentation > 0]
    assert cosine.min() > math.cos(math.radians(0.5))


def all_tasks() -> dict[str, Task]:
    tasks: dict[str, Task] = {
        "shape": Classification(),
        "present": MultiLabel(),
        "count": Regression(),
        "where": Regression(),
        "segmentation": SemanticSegmentation(list(SURFACES)),
        "depth": Depth(),
        "normals": SurfaceNormals(),
    }
    for name, task in tasks.items():
        task.name = name
    return tasks


def module(**options: Any) -> ScenesDataModule:
    return ScenesDataModule(
        **{"train_size": 12, "val_size": 4, "test_size": 0, "size": 32, "num_workers": 0, "batch_size": 4} | options
    )


@pytest.mark.parametrize("cache", [True, False])
def test_every_task_learns_from_the_module(cache: bool) -> None:
    data, tasks = (
        module(targets={"where": "box"}, hidden={"shape": 0.4, "where": 0.5}, hidden_pixels=0.2, cache=cache),
        all_tasks(),
    )
    data.tasks = tasks
    data.setup("fit")
    assert tasks["shape"].names == list(SHAPES) and tasks["present"].names == list(PRESENT) and tasks["count"].names == ["count"]
    counts = data.counts()
    assert 0 < counts["train"]["shape"][0] < 12 and counts["train"]["depth"] == (12, 12)
    assert all(counts["val"][name] == (4, 4) for name in tasks)
    hidden = [(batch.targets["segmentation"] == -1).float().mean() for batch in data.train_dataloader()]
    assert np.allclose(hidden, 0.2, atol=0.001)
    assert all((batch.targets["segmentation"] >= 0).all() for batch in data.val_dataloader())
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        assert batch.inputs["image"].shape == (4, 3, 32, 32)
        for name, task in tasks.items():
            for row in batch.labelled[name].nonzero().flatten().tolist():
                task.check(batch.targets[name][row], batch.ids[row])
    assert (batch.targets["where"][:, 2:] > batch.targets["where"][:, :2]).all()


@pytest.mark.parametrize(
    ("options", "task", "words"),
    [
        ({}, Classification(), ["targets.odd", "'odd'", "shape"]),
        ({"targets": {"odd": "depht"}}, Depth(), ["targets.odd", "'depht'", "depth"]),
        ({"targets": {"odd": "depth"}}, Classification(), ["targets.odd", "depth", "Classification", "shape"]),
        ({"targets": {"odd": "box"}}, Depth(), ["targets.odd", "numbers", "depth"]),
        ({"targets": {"odd": "shape"}}, Classification(["box", "sphere"]), ["'odd'", "box", "cylinder"]),
        ({"targets": {"odd": "segmentation"}}, SemanticSegmentation(["a", "b"]), ["'odd'", "ground", "cone"]),
        ({"targets": {"odd": "shape"}, "hidden": {"shap": 0.1}}, Classification(), ["hidden.shap", "odd"]),
    ],
)
def test_tasks_that_scenes_cannot_serve_are_refused(options: dict[str, Any], task: Task, words: list[str]) -> None:
    data = module(**options)
    data.configured = ["odd"]
    with pytest.raises(ConfigError) as error:
        data.datasets({"odd": task}, ["train"])
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"hidden": 1.5}, "hidden"),
        ({"hidden": {"depth": -0.1}}, "hidden.depth"),
        ({"hidden_eval": float("nan")}, "hidden_eval"),
        ({"hidden_pixels": 2.0}, "hidden_pixels"),
        ({"size": (64, 8)}, "size"),
        ({"val_size": -1}, "val_size"),
        ({"scene_seed": -1}, "scene_seed"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.init_args\.{word} "):
        module(**options)


def test_a_cache_that_is_too_large_is_refused_before_it_is_filled() -> None:
    with pytest.raises(ConfigError, match=r"cache.*GiB.*false"):
        module(train_size=1_000_000, targets={"d": "depth"}, size=64).datasets({"d": Depth()}, ["train"])
