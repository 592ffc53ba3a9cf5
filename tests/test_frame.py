"""Dense predictions at the stored picture's size, wherever the transforms have put it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from mtl_lightning import frame as frame_module
from mtl_lightning.data.prepare import Preparation
from mtl_lightning.errors import DataError
from mtl_lightning.frame import Frame


def plain(raw: Tensor) -> list[Tensor]:
    return list(raw)


@pytest.mark.parametrize("size", [(30, 41), (7, 9), (16, 12), (1, 1)])
def test_the_whole_picture_is_resized_as_by_torch(size: tuple[int, int]) -> None:
    raw = torch.randn(3, 16, 12)
    expected = F.interpolate(raw[None], size, mode="bilinear", align_corners=False)[0]
    assert torch.allclose(Frame.whole(size, (16, 12)).back(raw, plain, 0), expected, atol=1e-5)


def test_strips_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, frame = torch.randn(3, 16, 12), Frame.whole((50, 37), (16, 12))
    whole = frame.back(raw, plain, 0)
    monkeypatch.setattr(frame_module, "STRIP", 3 * 37 * 4)
    seen = []
    parts = frame.back(raw, lambda strip: seen.append(strip.shape[-2]) or list(strip), 0)
    assert torch.equal(parts, whole)
    assert max(seen) == 4


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [v2.Resize([20, 33])],
        [v2.Resize(24), v2.CenterCrop(20)],
        [v2.CenterCrop([24, 60])],
        [v2.Pad([3, 5, 2, 1]), v2.Resize([64, 64])],
        [v2.ColorJitter(0.1)],
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [None, (28, 26)])
def test_every_pixel_comes_back_to_its_place(transforms: list[v2.Transform], size: tuple[int, int] | None) -> None:
    height, width = 40, 52
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    image = tv_tensors.Image(torch.stack([rows, columns, torch.full_like(rows, 0.5)]))
    picture = Preparation(transforms if "Jitter" not in str(transforms) else [v2.Identity()], size).prepare(image, "x")
    back = picture.frame.back(picture.image, plain, -1)
    assert back.shape == (3, height, width)
    inside = back[2] >= 0
    assert inside.float().mean() > 0.2
    # Close to the border of what the network saw, resizing has less to interpolate from.
    deep = inside & ~F.max_pool2d((~inside).float()[None], 7, 1, 3)[0].bool()
    deep[:4], deep[-4:], deep[:, :4], deep[:, -4:] = False, False, False, False
    assert (back[0] - rows)[deep].abs().max() < 0.02
    assert (back[1] - columns)[deep].abs().max() < 0.02


@pytest.mark.parametrize("transform", [v2.RandomHorizontalFlip(1.0), v2.RandomRotation((30, 30)), v2.RandomVerticalFlip(1.0)])
def test_what_cannot_be_undone(transform: v2.Transform) -> None:
    image = tv_tensors.Image(torch.zeros(3, 20, 30, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"x: data.init_args.eval_transforms turn, flip or bend"):
        Preparation([transform]).prepare(image, "x")


def test_places_in_the_stored_picture() -> None:
    frame = Frame((100, 200), (20, 40), (0.25, 0.5), (-2.0, -10.0))
    assert frame.stored(0.5, 0.25) == (48.0, 40.0)
