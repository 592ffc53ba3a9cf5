import math
import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from mtl_lightning.batch import IGNORE
from mtl_lightning.data.seeding import mix, sample_randomness
from mtl_lightning.data.transforms import RandomScaleCrop, compose, finish
from mtl_lightning.data.tv import ClassMap, Depth, Normals
from mtl_lightning.errors import ConfigError, DataError

KINDS = [ClassMap, Depth, Normals]


def sphere(size: int = 41) -> Normals:
    """A ball's normals: outwards, x right, y up, z towards the viewer; zero beside the ball."""
    y, x = torch.meshgrid(torch.linspace(1, -1, size), torch.linspace(-1, 1, size), indexing="ij")
    inside = x**2 + y**2 < 0.9
    z = (1 - x**2 - y**2).clamp_min(0).sqrt()
    return Normals(torch.stack([x, y, z]) * inside)


def plane(x: float, y: float, z: float, height: int = 6, width: int = 8) -> Normals:
    vector = torch.tensor([x, y, z])
    return Normals((vector / vector.norm()).view(3, 1, 1).expand(3, height, width).clone())


def sample(height: int = 48, width: int = 64) -> dict[str, Any]:
    """A rectangle at rows 10..29, columns 20..49 in image, classes and depth, with its box; the rest is 30 metres of class 2."""
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[10:30, 20:50] = True
    return {
        "id": "one.png",
        "size": (height, width),
        "image": tv_tensors.Image(torch.where(inside, 255, 0).to(torch.uint8).expand(3, height, width).clone()),
        "seg": ClassMap(torch.where(inside, 7, 3).to(torch.uint8)),
        "depth": Depth(torch.where(inside, 10.0, 30.0)[None]),
        "normals": Normals(torch.tensor([0.6, 0.0, 0.8]).view(3, 1, 1).expand(3, height, width).clone()),
        "box": tv_tensors.BoundingBoxes([[20.0, 10.0, 50.0, 30.0]], format="XYXY", canvas_size=(height, width)),
        "breed": torch.tensor(4),
        "numbers": torch.tensor([1.5, float("nan")]),
    }


def measured(mask: Tensor) -> Tensor:
    """The corners of the True pixels as fractions."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    height, width = mask.shape
    return torch.tensor([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height])


def label(kind: type[Any], height: int = 24, width: int = 20) -> Any:
    if kind is ClassMap:
        return ClassMap(torch.randint(1, 200, (height, width), dtype=torch.uint8))
    return kind(torch.rand(1 if kind is Depth else 3, height, width) + 0.5)


# Normals


@pytest.mark.parametrize("flip", [F.horizontal_flip, F.vertical_flip])
def test_flipped_ball_is_the_same_ball(flip: Any) -> None:
    assert torch.allclose(flip(sphere()), sphere(), atol=1e-6)


@pytest.mark.parametrize("degrees", [90, 180, 270, -90, 30, -47.5])
def test_rotated_ball_is_the_same_ball(degrees: float) -> None:
    # The ball looks alike from all angles. Nearest pixels are off by up to one pixel of 2/40.
    known = sphere().norm(dim=0) > 0
    for turned in (F.rotate(sphere(), degrees), F.affine(sphere(), degrees, [0, 0], 1.0, [0.0, 0.0])):
        both = known & (turned.norm(dim=0) > 0)
        assert both.sum() > 0.9 * known.sum()
        tolerance = 1e-5 if degrees % 90 == 0 else 0.06
        assert (turned - sphere())[:2, both].abs().max() < tolerance


def test_planes_by_hand() -> None:
    right = plane(0.6, 0.0, 0.8)
    assert torch.allclose(F.horizontal_flip(right), plane(-0.6, 0.0, 0.8))
    assert torch.allclose(F.vertical_flip(right), right)
    assert torch.allclose(F.vertical_flip(plane(0.0, 0.6, 0.8)), plane(0.0, -0.6, 0.8))
    # Counter-clockwise by a quarter, what faced right faces up; affine turns the other way.
    assert torch.allclose(F.rotate(right, 90, expand=True), plane(0.0, 0.6, 0.8, 8, 6), atol=1e-6)
    turned = F.affine(plane(0.6, 0.0, 0.8, 7, 7), 90, [0, 0], 2.0, [0.0, 0.0])
    assert torch.allclose(turned, plane(0.0, -0.6, 0.8, 7, 7), atol=1e-6)


def test_input_is_not_changed_in_place() -> None:
    kept = sphere().clone()
    given = sphere()
    F.horizontal_flip(given), F.rotate(given, 90), F.resize(given, [41, 41])
    assert torch.equal(given, kept)


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (v2.RandomAffine(0, shear=(10, 20)), "shear"),
        (v2.RandomPerspective(p=1.0), "perspective"),
        (v2.ElasticTransform(), "elastic"),
    ],
)
def test_normals_refuse_what_bends_and_name_the_sample(transform: Any, name: str) -> None:
    with pytest.raises(DataError, match=rf"one\.png: surface normals.*{name}"):
        compose([transform])(sample())
    without = {key: value for key, value in sample().items() if key != "normals"}
    assert compose([transform])(without)["seg"].shape == (48, 64)


def test_mirrored_margins_of_normals_are_unlabelled() -> None:
    padded = F.pad(plane(0.6, 0.0, 0.8), [2], padding_mode="reflect")
    assert padded.shape == (3, 10, 12)
    assert padded.norm(dim=0).count_nonzero() == 6 * 8


# All kinds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flip", [F.horizontal_flip, F.vertical_flip])
def test_flip_twice_is_nothing(kind: type[Any], flip: Any) -> None:
    given = label(kind)
    once = flip(given)
    assert type(once) is kind and once.dtype == given.dtype
    assert not torch.equal(once, given)
    assert torch.equal(flip(once), given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "transform",
    [
        v2.Resize((37, 53)),
        v2.Resize(17, interpolation=InterpolationMode.BICUBIC, max_size=40),
        v2.RandomResizedCrop((37, 53), scale=(1.0, 1.0), ratio=(20 / 24, 20 / 24), interpolation=InterpolationMode.BILINEAR),
        v2.RandomAffine((20, 20), translate=(0.1, 0.1), interpolation=InterpolationMode.BILINEAR, fill=200),
        v2.RandomRotation((33, 33), interpolation=InterpolationMode.BILINEAR, expand=True, fill=(250, 251, 252)),
        v2.RandomCrop((40, 40), pad_if_needed=True, fill=77),
        v2.RandomZoomOut(fill=99, p=1.0),
        v2.Pad(3, fill=201),
        v2.CenterCrop(40),
        v2.RandomPerspective(p=1.0, fill=202),
        v2.ElasticTransform(sigma=1.0, fill=203),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_no_transform_invents_a_value_and_what_it_fills_in_is_unlabelled(kind: type[Any], transform: Any) -> None:
    torch.manual_seed(3)
    given = {"image": tv_tensors.Image(torch.rand(3, 24, 20)), "label": label(kind)}
    if kind is Normals:
        if isinstance(transform, v2.RandomPerspective | v2.ElasticTransform):
            pytest.skip("refused, tested above")
        # Towards the viewer, so that no turn changes them.
        given["label"] = Normals(torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1) * (torch.rand(24, 20) + 0.5))
    out = transform(given)
    assert type(out["label"]) is kind and out["label"].dtype == given["label"].dtype
    assert out["label"].shape[-2:] == out["image"].shape[-2:]
    allowed = {0.0, *given["label"].flatten().tolist()}
    assert set(out["label"].flatten().tolist()) <= allowed


@pytest.mark.parametrize("factor", [3, 5])
def test_resize_takes_the_pixel_in_the_middle(factor: int) -> None:
    # Every coarse pixel's centre lies on the centre of the middle one of its factor x factor fine pixels.
    fine = torch.arange(4 * factor * 6 * factor).reshape(4 * factor, 6 * factor)
    middles = fine[factor // 2 :: factor, factor // 2 :: factor]
    assert torch.equal(F.resize(ClassMap(fine), [4, 6]), middles)
    assert torch.equal(F.resized_crop(ClassMap(fine), factor, 0, 2 * factor, 6 * factor, [2, 6]), middles[1:3])


def test_filled_in_regions_are_unlabelled_in_the_batch() -> None:
    out = compose([v2.Pad(5, fill=123)])(sample())
    assert (out["seg"] == IGNORE).sum() == out["seg"].numel() - 48 * 64
    assert ((out["depth"] == 0).sum(), (out["normals"].norm(dim=0) == 0).sum()) == (58 * 74 - 48 * 64, 58 * 74 - 48 * 64)
    assert out["image"][0, 0, 0] == pytest.approx(123 / 255)


# Depth


def test_depth_follows_the_zoom() -> None:
    depth = Depth(torch.full((1, 40, 60), 12.0))
    assert (F.resized_crop(depth, 3, 5, 20, 30, [40, 60]) == 6.0).all()
    # A crop of another shape: the zoom is the root of the ratio of areas; the size it is stored at does not matter.
    assert torch.allclose(F.resized_crop(depth, 0, 0, 10, 60, [7, 7]), torch.tensor(6.0))
    assert (F.resized_crop(depth, 0, 0, 40, 60, [20, 30]) == 12.0).all()
    zoomed = F.affine(depth, 0, [0, 0], 1.5, [0.0, 0.0])
    assert (zoomed == 8.0).all()
    smaller = F.affine(depth, 0, [0, 0], 0.5, [0.0, 0.0])
    assert set(smaller.flatten().tolist()) == {0.0, 24.0}
    for same in (F.resize(depth, [80, 30]), F.crop(depth, 3, 4, 10, 10), F.rotate(depth, 90, expand=True), F.pad(depth, [0])):
        assert (same == 12.0).all()


@pytest.mark.parametrize("scale", [1.0, 1.2, 1.5, 4.0])
def test_scale_crop_divides_depth_by_the_scale_and_keeps_the_size(scale: float) -> None:
    given = sample(480, 600)
    given["depth"] = Depth(torch.full((1, 480, 600), 6.0))
    out = compose([RandomScaleCrop([scale])])(given)
    assert out["depth"].shape == (1, 480, 600)
    assert torch.allclose(out["depth"], torch.tensor(6.0 / scale), rtol=1e-3)
    assert out["image"].shape == (3, 480, 600) and out["seg"].shape == (480, 600)


def test_scale_crop_draws_each_scale_and_reaches_each_corner() -> None:
    given = {"image": tv_tensors.Image(torch.zeros(1, 4, 4)), "depth": Depth(torch.full((1, 4, 4), 8.0))}
    given["seg"] = ClassMap(torch.arange(1, 17).view(4, 4))
    torch.manual_seed(0)
    drawn = [RandomScaleCrop([1.0, 2.0, 4.0])(given) for _ in range(300)]
    counts = [sum(out["depth"].eq(8.0 / scale).all().item() for out in drawn) for scale in (1.0, 2.0, 4.0)]
    assert sum(counts) == 300 and min(counts) > 70
    assert {int(out["seg"][0, 0]) for out in drawn if out["depth"][0, 0, 0] == 2.0} == set(range(1, 17))


def test_scale_crop_refuses_scales_below_one() -> None:
    with pytest.raises(ConfigError, match="scales"):
        RandomScaleCrop([0.5, 1.0])


# Boxes


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomHorizontalFlip(1.0),
        v2.RandomVerticalFlip(1.0),
        v2.Resize((96, 192)),
        v2.CenterCrop(32),
        v2.Pad((8, 16)),
        v2.RandomCrop((40, 40)),
        v2.RandomResizedCrop((120, 120), scale=(0.3, 0.6), antialias=True),
        v2.RandomRotation((90, 90), expand=True),
        RandomScaleCrop([1.6]),
    ],
    ids=lambda transform: type(transform).__name__,
)
@pytest.mark.parametrize("kind", ["XYXY", "XYWH", "CXCYWH"])
def test_box_moves_with_the_painted_rectangle(transform: Any, kind: str) -> None:
    torch.manual_seed(2)
    given = sample()
    given["box"] = F.convert_bounding_box_format(given["box"], new_format=kind)
    out = compose([transform])(given)
    pixel = 1 / min(out["seg"].shape)
    assert torch.allclose(out["box"], measured(out["seg"] == 6), atol=pixel)
    assert torch.allclose(out["box"], measured(out["image"][0] > 0.5), atol=pixel)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("XYXY", [20, 10, 50, 30]),
        ("XYWH", [20, 10, 30, 20]),
        ("CXCYWH", [35, 20, 30, 20]),
        ("XYWHR", [20, 10, 30, 20, 0]),
        ("CXCYWHR", [35, 20, 20, 30, 90]),
        ("XYXYXYXY", [35, 10, 50, 20, 35, 30, 20, 20]),
    ],
)
def test_box_of_every_format_by_hand(kind: str, numbers: list[int]) -> None:
    given = sample()
    given["box"] = tv_tensors.BoundingBoxes([numbers], dtype=torch.float32, format=kind, canvas_size=(48, 64))
    assert torch.allclose(finish(given)["box"], torch.tensor([20 / 64, 10 / 48, 50 / 64, 30 / 48]), atol=1e-6)


def test_box_beside_the_crop_is_no_label() -> None:
    cut = v2.Lambda(
        lambda part: F.crop(part, 35, 0, 10, 64), tv_tensors.Image, tv_tensors.BoundingBoxes, Normals, Depth, ClassMap
    )
    out = compose([cut])(sample())
    assert "box" not in out and out["seg"].shape == (10, 64)


def test_box_is_clamped_and_must_be_one() -> None:
    given = sample()
    given["box"] = tv_tensors.BoundingBoxes([[-10.0, 10.0, 50.0, 99.0]], format="XYXY", canvas_size=(48, 64))
    assert torch.allclose(finish(given)["box"], torch.tensor([0.0, 10 / 48, 50 / 64, 1.0]))
    given["box"] = tv_tensors.BoundingBoxes(torch.ones(2, 4), format="XYXY", canvas_size=(48, 64))
    with pytest.raises(DataError, match=r"one\.png, task 'box'.*2 boxes"):
        finish(given)


# The whole


def test_finish_gives_plain_tensors_of_the_contract() -> None:
    given = sample()
    given["seg"][0, 0] = 0
    given["depth"][0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    given["normals"] = Normals(given["normals"] * 3)
    given["normals"][:, 5, 5] = 0
    out = finish(given)
    assert all(type(value) is Tensor for value in out.values() if isinstance(value, Tensor))
    assert out["image"].dtype == torch.float32 and set(out["image"].unique().tolist()) == {0.0, 1.0}
    assert out["seg"].dtype == torch.int64 and out["seg"][0, 0] == IGNORE
    assert set(out["seg"].unique().tolist()) == {IGNORE, 2, 6}
    assert out["depth"][0, 0, :4].tolist() == [0.0, 0.0, 0.0, 30.0]
    length = out["normals"].norm(dim=0)
    assert length[5, 5] == 0 and length.count_nonzero() == 48 * 64 - 1
    assert torch.allclose(length[length > 0], torch.tensor(1.0))
    assert given["seg"].dtype == torch.uint8  # the sample itself is as before


def test_numbers_names_and_sizes_pass_untouched() -> None:
    steps = [v2.RandomHorizontalFlip(1.0), v2.RandomResizedCrop(30), v2.ColorJitter(0.5), v2.GaussianBlur(3)]
    given = sample()
    out = compose([*steps, v2.Compose(steps), v2.ToDtype(torch.float32, scale=True)], 24)(dict(reversed(given.items())))
    assert out["id"] == "one.png" and out["size"] == (48, 64)
    assert out["breed"] is given["breed"] and out["numbers"] is given["numbers"]


def test_image_size() -> None:
    for size, expected in ((20, (20, 20)), ([20, 30], (20, 30)), ((48, 64), (48, 64)), (None, (48, 64))):
        out = compose([], size)(sample())
        assert {tuple(out[key].shape[-2:]) for key in ("image", "seg", "depth", "normals")} == {expected}
        assert set(out["seg"].unique().tolist()) == {2, 6}
        assert set(out["depth"].unique().tolist()) == {10.0, 30.0}
        assert torch.allclose(out["box"], torch.tensor([20 / 64, 10 / 48, 50 / 64, 30 / 48]))
    with pytest.raises(ConfigError, match="image_size"):
        compose([], [1, 2, 3])


def test_only_images_are_interpolated() -> None:
    # One bright column in four, shrunk fourfold: an antialiased image is a quarter bright everywhere, labels stay whole.
    stripes = torch.tensor([255, 0, 0, 0], dtype=torch.uint8).repeat(10).expand(3, 40, 40)
    out = compose([], 10)({"id": "x", "image": tv_tensors.Image(stripes), "seg": ClassMap(stripes[0] // 255 + 1)})
    inner = out["image"][:, :, 2:8]
    assert inner.min() > 0.2 and inner.max() < 0.3
    assert len(out["seg"].unique()) == 1


def test_transforms_that_make_plain_tensors_are_refused() -> None:
    for size in (None, 20):
        for transform in (v2.ToPureTensor(), v2.ToPILImage()):
            with pytest.raises(DataError, match=r"one\.png.*ToPureTensor"):
                compose([transform], size)(sample())


def test_pickles_for_workers() -> None:
    pipeline = compose([RandomScaleCrop(), v2.RandomHorizontalFlip()], 32)
    assert pickle.loads(pickle.dumps(pipeline))(sample())["image"].shape == (3, 32, 32)


# Randomness


def augmented(seed: int, epoch: int, index: int, restore: bool = True) -> Tensor:
    with sample_randomness(seed, epoch, index, restore):
        transform = compose([v2.RandomResizedCrop(16), v2.ColorJitter(0.5, 0.5), v2.RandomHorizontalFlip()])
        image: Tensor = transform({"id": "x", "image": tv_tensors.Image(torch.arange(768.0).view(3, 16, 16) / 768)})["image"]
        return image + random.random()


def test_same_numbers_same_sample_other_numbers_another() -> None:
    torch.manual_seed(1)
    first = augmented(1, 2, 3)
    torch.rand(5), random.random()
    assert torch.equal(augmented(1, 2, 3), first)
    assert torch.equal(augmented(1, 2, 3, restore=False), first)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1), (2, 1, 3)):
        assert not torch.allclose(augmented(*other), first)


def test_restore_leaves_the_callers_stream_alone_even_after_an_error() -> None:
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    with pytest.raises(KeyError), sample_randomness(0, 0, 0):
        torch.rand(9), random.random()
        raise KeyError
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_each_bit_of_each_number_turns_half_of_the_hash(position: int) -> None:
    # Of the lower 32 bits, which are all that torch's generator takes.
    turned = []
    for trial in range(200):
        key = [trial, 3 * trial, 7 * trial]
        other = list(key)
        other[position] ^= 1 << (trial % 20)
        turned.append(((mix(*key) ^ mix(*other)) & 0xFFFFFFFF).bit_count())
    assert min(turned) > 4 and 15 < sum(turned) / len(turned) < 17


def test_streams_are_independent() -> None:
    # Neighbours in seed, epoch and index: no hash twice, and first draws that are uniform and uncorrelated.
    keys = [(seed, epoch, index) for seed in range(8) for epoch in range(8) for index in range(64)]
    assert len({mix(*key) & 0xFFFFFFFF for key in keys}) >= len(keys) - 1
    assert len({mix(*key) for key in keys}) == len(keys)
    draws = []
    for key in keys:
        with sample_randomness(*key, restore=False):
            draws.append(torch.rand(()))
    values = torch.stack(draws)
    counts = torch.histc(values, bins=16, min=0, max=1)
    expected = len(keys) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-square with 15 degrees of freedom, p = 1e-4
    grid = values.view(8, 8, 64) - values.mean()
    for axis in range(3):
        neighbours = (grid * grid.roll(1, axis)).mean() / values.var()
        assert abs(neighbours) < 4 / math.sqrt(len(keys))
