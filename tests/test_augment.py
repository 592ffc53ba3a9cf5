"""Automatic augmentation beside labels that must move with the image."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from mtl_lightning.data.augment import RandAugmentWithLabels, TrivialAugmentWithLabels
from mtl_lightning.data.seeding import sample_randomness
from mtl_lightning.data.transforms import compose
from mtl_lightning.data.tv import ClassMap, Depth, Normals
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.main import main
from tests.data.manifest import write_manifest

CONF = Path(__file__).parent / "conf" / "pets_tiny.yaml"
PHOTOMETRIC = [
    v2.ColorJitter(0.4, 0.4, 0.4, 0.2), v2.RandomGrayscale(1.0), v2.GaussianBlur(5), v2.RandomSolarize(128, p=1.0),
    v2.RandomPosterize(3, p=1.0), v2.RandomEqualize(p=1.0), v2.RandomAutocontrast(p=1.0), v2.RandomInvert(p=1.0),
    v2.RandomAdjustSharpness(3.0, p=1.0), v2.RandomPhotometricDistort(p=1.0), v2.JPEG((5, 50)), v2.RandomChannelPermutation(),
    v2.RandomErasing(p=1.0), v2.ToDtype(torch.float32, scale=True),
]  # fmt: skip
OURS = [RandAugmentWithLabels(3, 15), RandAugmentWithLabels(1, 30), TrivialAugmentWithLabels()]
REFUSING = [v2.RandAugment(), v2.AutoAugment(), v2.TrivialAugmentWide(), v2.AugMix()]


def sample(height: int = 60, width: int = 80) -> dict[str, Any]:
    """A bright rectangle on dark ground, and its labels."""
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[22:40, 28:52] = True
    return {
        "id": "one.png",
        "image": tv_tensors.Image(torch.where(inside, 200, 20).to(torch.uint8).expand(3, height, width).clone()),
        "seg": ClassMap(torch.where(inside, 2, 1).to(torch.uint8)),
        "depth": Depth(torch.where(inside, 5.0, 9.0)[None]),
        "box": tv_tensors.BoundingBoxes([[28.0, 22.0, 52.0, 40.0]], format="XYXY", canvas_size=(height, width)),
        "numbers": torch.rand(4),
        "breed": torch.tensor(4),
    }


def moved(transform: Any, number: int, given: dict[str, Any]) -> dict[str, Any]:
    with sample_randomness(0, 0, number):
        return compose([transform])(given)


@pytest.mark.parametrize("transform", OURS, ids=lambda transform: type(transform).__name__)
def test_every_label_is_where_its_pixels_are(transform: Any) -> None:
    """The picture itself is a mask here: what the classes say must be bright, and the box must hold it."""
    different = fitting = 0
    for number in range(60):
        given = sample()
        geometric = type(transform)(**({"num_ops": transform.count, "magnitude": transform.magnitude}
                                       if hasattr(transform, "magnitude") else {}))  # fmt: skip
        geometric.names = [name for name in geometric.names if geometric.operations()[name].moves]
        after = moved(geometric, number, given)
        bright, object_ = after["image"][0] > 110 / 255, after["seg"] == 1
        # Nearest pixels of labels against interpolated ones of the image differ along the edge alone.
        assert (bright ^ object_).sum() < 0.2 * bright.sum() + 8, number
        assert torch.equal(after["depth"][0] == 5.0, object_) and torch.equal(after["depth"][0] == 0, after["seg"] == -1)
        assert (after["image"][0][after["seg"] == -1] > 0.2).sum() <= 8, number
        if "box" in after and object_.any():
            rows, columns = object_.any(1).nonzero()[:, 0], object_.any(0).nonzero()[:, 0]
            tight = torch.tensor([columns[0] / 80, rows[0] / 60, (columns[-1] + 1) / 80, (rows[-1] + 1) / 60])
            # The box around the moved corners: it holds the object, and fits where that was moved once and is all inside.
            slack = torch.cat([tight[:2] - after["box"][:2], after["box"][2:] - tight[2:]])
            assert slack.min() > -0.03, number
            inside = tight[:2].min() > 0 and tight[2:].max() < 1
            assert slack.max() < 0.04 or transform.count > 1 or not inside, number
            fitting += bool(slack.max() < 0.04)
        different += not torch.equal(object_, sample()["seg"].as_subclass(Tensor) == 2)
        assert torch.equal(after["numbers"], given["numbers"]) and int(after["breed"]) == 4
    assert different > 30 and fitting > 20


def test_normals_turn_along_and_are_not_sheared() -> None:
    given = sample()
    facing = torch.tensor([0.6, 0.0, 0.8]).view(3, 1, 1).expand(3, 60, 80).clone()
    directions = set()
    for number in range(60):
        after = moved(RandAugmentWithLabels(2, 20), number, given | {"normals": Normals(facing)})
        known = after["seg"] >= 0
        assert torch.equal(after["normals"].norm(dim=0) > 0.5, known)
        directions |= {round(float(after["normals"][1, known].mean()), 2)}
    # 20 degrees either way: 0.6 * sin 20°.
    assert directions >= {-0.21, 0.0, 0.21}


@pytest.mark.parametrize("transform", PHOTOMETRIC, ids=lambda transform: type(transform).__name__)
def test_colour_changes_leave_labels_alone(transform: Any) -> None:
    given, plain = sample(), compose([])(sample())
    after = moved(transform, 0, given)
    for key in ("seg", "depth", "box", "breed"):
        assert torch.equal(after[key], plain[key]), key
    assert torch.equal(after["numbers"], given["numbers"])


@pytest.mark.parametrize("transform", REFUSING, ids=lambda transform: type(transform).__name__)
def test_torchvisions_automatic_ones_never_move_the_image_alone(transform: Any) -> None:
    """They work where no label has to move, and refuse each kind that would have to."""
    whole = sample()
    assert moved(transform, 1, {key: whole[key] for key in ("id", "image", "numbers", "breed")})["image"].shape == (3, 60, 80)
    for key in ("seg", "depth", "box"):
        with pytest.raises(DataError, match=r"one.png: .*not supported by.*RandAugmentWithLabels and TrivialAugmentWithLabels"):
            moved(transform, 1, {name: whole[name] for name in ("id", "image", key)})


def test_ours_pickle_and_refuse_wrong_numbers() -> None:
    again = pickle.loads(pickle.dumps(OURS[0]))
    assert torch.equal(moved(again, 5, sample())["image"], moved(OURS[0], 5, sample())["image"])
    for options in ({"num_ops": -1}, {"magnitude": 31}):
        with pytest.raises(ConfigError, match="expected 0 or more, and 0 to 30"):
            RandAugmentWithLabels(**options)
    grey = sample() | {"image": tv_tensors.Image(torch.full((1, 60, 80), 50, dtype=torch.uint8))}
    for number in range(30):
        assert moved(RandAugmentWithLabels(), number, grey)["image"].shape == (1, 60, 80)
    still = moved(RandAugmentWithLabels(0), 3, sample())
    assert torch.equal(still["seg"], compose([])(sample())["seg"])


def test_from_yaml_with_masks_and_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(tmp_path / "pets", count=45, labelled=0.85)

    def fit(name: str, *transforms: str) -> None:
        file = tmp_path / f"{name}.yaml"
        file.write_text(
            yaml.safe_dump({"data": {"init_args": {"train_transforms": [{"class_path": path} for path in transforms]}}})
        )
        runs = ["--runs", str(tmp_path / "runs"), f"--name={name}", "--trainer.limit_val_batches=0"]
        main(["fit", "--config", str(CONF), "--config", str(file), *runs,
              f"--data.init_args.root={tmp_path / 'pets'}", "--data.init_args.verify=0"])  # fmt: skip

    fit("ours", "RandAugmentWithLabels", "TrivialAugmentWithLabels", "torchvision.transforms.v2.ColorJitter")
    with pytest.raises(SystemExit):
        fit("theirs", "torchvision.transforms.v2.RandAugment")
    captured = capsys.readouterr()
    assert "the transform RandAugment(" in captured.err and "RandAugmentWithLabels" in captured.err
    # Found before training, and nothing is left behind.
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["ours"]
