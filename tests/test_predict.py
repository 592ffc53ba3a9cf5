"""Predictions of a run for its test split and for pictures of one's own, on disk and in Python."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms.v2 import CenterCrop

import mtl_lightning
from mtl_lightning.architectures import HardSharing
from mtl_lightning.callbacks.predictions import PredictionWriter
from mtl_lightning.data.prepare import Preparation
from mtl_lightning.data.scenes import ScenesDataset
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.errors import CheckpointError, ConfigError, DataError
from mtl_lightning.main import main
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Depth, Regression, SemanticSegmentation, SurfaceNormals, Task
from mtl_lightning.tasks.results import Box, Category, DepthMap, Labels, Mask, NormalMap, Numbers

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "conf" / "tiny.yaml"
SEGMENTS = ["background", "ground", "sphere", "box", "cylinder", "cone"]
TASKS: dict[str, Any] = {
    "shape": {"class_path": "Classification"},
    "present": {"class_path": "MultiLabel"},
    "count": {"class_path": "Regression"},
    "box": {"class_path": "Regression", "init_args": {"head": {"class_path": "MLP", "init_args": {"hidden": [8], "pool": 2}}}},
    "segmentation": {"class_path": "SemanticSegmentation", "init_args": {"classes": SEGMENTS}},
    "depth": {"class_path": "Depth", "init_args": {"head": "FCN"}},
    "normals": {"class_path": "SurfaceNormals", "init_args": {"auxiliary": True}},
}
SIZE = (20, 28)


def config(folder: Path, **data: Any) -> Path:
    """A run of every kind of task on a few small scenes."""
    arguments = {"train_size": 16, "val_size": 8, "test_size": 7, "size": list(SIZE), "hidden": 0.2, "batch_size": 4,
                 "num_workers": 0}  # fmt: skip
    content = {
        "name": "all",
        "model": {
            "tasks": TASKS,
            "encoder": {"class_path": "SmallCNN", "init_args": {"widths": [8, 8]}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {"class_path": "ScenesDataModule", "init_args": arguments | data},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1},
    }
    file = folder / "all.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, its run, and pictures of several sizes among other files."""
    folder = tmp_path_factory.mktemp("predict")
    main(["fit", "--config", str(config(folder)), "--runs", str(folder / "runs")])
    pictures = folder / "pictures"
    (pictures / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in {"a.png": (30, 41), "more/b.jpg": (22, 22), "more/c.png": (30, 41)}.items():
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(pictures / name)
    Image.fromarray(random.integers(0, 255, (25, 25), dtype=np.uint8)).save(pictures / "grey.png")
    (pictures / "notes.txt").write_text("no picture")
    return folder


def predict(place: Path, *args: str) -> None:
    main(["predict", "--config", str(place / "all.yaml"), "--runs", str(place / "runs"), *args])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(place: Path) -> Path:
    """The predictions of the test split."""
    predict(place)
    return place / "runs/all/predictions"


def test_the_table_of_the_test_split(written: Path) -> None:
    table = rows(written)
    assert [row["id"] for row in table] == [f"test/{number:06d}" for number in range(7)]
    assert list(table[0]) == [
        *("id", "shape", "shape.probability", "present"),
        *(f"present.{name}" for name in json.loads((written / "predictions.json").read_text())["tasks"]["present"]["names"]),
        *("count", "box.x0", "box.y0", "box.x1", "box.y1", "segmentation", "depth", "depth.png", "normals", "normals.png"),
    ]
    for row in table:
        assert 1 / 4 <= float(row["shape.probability"]) <= 1
        assert 0 < float(row["count"]) < 6
        yes = [name.removeprefix("present.") for name in row if name.startswith("present.") and float(row[name]) >= 0.5]
        assert row["present"] == "|".join(yes)
    assert not (written.parent / "predictions.partial").exists()
    assert (written / "contact_sheet.png").stat().st_size > 10_000


def test_the_files_can_be_read_back(written: Path) -> None:
    row, about = rows(written)[3], json.loads((written / "predictions.json").read_text())
    mask = Image.open(written / row["segmentation"])
    assert mask.mode == "P" and mask.size == SIZE[::-1]
    assert set(np.unique(np.array(mask))) <= set(range(6))
    assert about["tasks"]["segmentation"]["pixels"]["2"] == "sphere"
    assert about["pictures"] == 7 and about["checkpoint"].endswith("best.ckpt")
    depth, picture = np.load(written / row["depth"]), np.array(Image.open(written / row["depth.png"]))
    # Older versions of Pillow give 16 bits as 32.
    assert depth.dtype == np.float32 and depth.shape == SIZE and picture.dtype in (np.uint16, np.int32)
    assert np.abs(picture * about["tasks"]["depth"]["png_step"] - depth).max() <= about["tasks"]["depth"]["png_step"]
    normals, colors = np.load(written / row["normals"]), np.array(Image.open(written / row["normals.png"]))
    assert np.allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    assert np.abs(colors / 127.5 - 1 - normals).max() < 0.01


def test_load_gives_what_predict_writes(place: Path, written: Path) -> None:
    model = mtl_lightning.load(place / "runs/all")
    dataset = ScenesDataset("test", 7, SIZE, 3, 0, {name: name for name in TASKS}, {})
    results = model.predict([dataset[number]["image"] for number in range(7)], batch_size=3)
    for row, result in zip(rows(written), results, strict=True):
        for task, value in result.items():
            for column, cell in value.cells().items():
                found = row[f"{task}.{column}" if column else task]
                try:
                    assert float(found) == pytest.approx(float(cell), abs=2e-5, rel=1e-4)
                except ValueError:
                    assert found == cell
        mask = np.array(Image.open(written / row["segmentation"]))
        assert (mask == result["segmentation"].mask).mean() > 0.999
        assert np.allclose(np.load(written / row["depth"]), result["depth"].depth, atol=1e-4)
        assert np.allclose(np.load(written / row["normals"]), result["normals"].normals, atol=1e-4)


def test_results_are_plain_and_typed(place: Path) -> None:
    model = mtl_lightning.load(place / "runs/all")
    result = model.predict(place / "pictures/a.png")
    kinds = {"shape": Category, "present": Labels, "count": Numbers, "box": Box, "segmentation": Mask, "depth": DepthMap,
             "normals": NormalMap}  # fmt: skip
    assert {name: type(value) for name, value in result.items()} == kinds
    shape = result["shape"]
    assert sum(shape.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert shape.probability == max(shape.probabilities.values()) == shape.probabilities[shape.name]
    assert result["segmentation"].mask.shape == result["depth"].depth.shape == (30, 41)
    image = torch.rand(2, 3, 16, 24)
    raw = model(image)
    assert {name: tuple(value.shape[1:]) for name, value in raw.items()}["depth"] == (1, 16, 24)
    alone = mtl_lightning.load(place / "runs/all/checkpoints/last.ckpt", tasks=["depth", "shape"])
    assert list(alone.predict(image[0])) == ["shape", "depth"]
    assert list(alone(image)) == ["shape", "depth"]
    assert not [name for name, _ in alone.named_parameters() if "normals" in name]


def test_every_form_of_a_picture_means_the_same(place: Path) -> None:
    model, path = mtl_lightning.load(place / "runs/all"), place / "pictures/a.png"
    picture = Image.open(path)
    array = np.array(picture)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = [path, str(path), picture, array, tensor, array.astype(np.float32) / 255, tensor.float() / 255]
    results = model.predict(forms)
    for result in results[1:]:
        assert result["count"].values["count"] == pytest.approx(results[0]["count"].values["count"], abs=1e-5)
        assert (result["segmentation"].mask == results[0]["segmentation"].mask).all()
    assert model.predict(torch.stack([tensor, tensor]))[1]["shape"].name == results[0]["shape"].name
    rgba = np.concatenate([array, np.full((*array.shape[:2], 1), 255, np.uint8)], -1)
    assert model.predict(rgba)["count"].values == pytest.approx(results[0]["count"].values, abs=1e-5)
    grey = model.predict([np.array(Image.open(place / "pictures/grey.png")), place / "pictures/grey.png"])
    assert grey[0]["count"].values == pytest.approx(grey[1]["count"].values, abs=1e-5)
    model.train()
    model.predict(path)
    assert model.training


@pytest.mark.parametrize(
    ("picture", "match"),
    [
        ("nowhere.png", "nowhere.png: there is no file"),
        (np.zeros((4, 5, 7), np.uint8), r"picture 0 has shape \(4, 5, 7\), expected \[height, width, channels\]"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), r"expected \[channels, height, width\]"),
        (np.full((8, 8, 3), 200.0), "values from 200 to 200, expected floating-point numbers in 0..1, not normalised"),
        (np.zeros((8, 8, 3), np.int64), "type torch.int64, expected uint8"),
        (3, "is a int, expected a path"),
    ],
)
def test_what_is_no_picture(place: Path, picture: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        mtl_lightning.load(place / "runs/all", tasks=["shape"]).predict(picture)


def test_what_is_no_run(place: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such run folder or checkpoint"):
        mtl_lightning.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="is no run folder"):
        mtl_lightning.load(tmp_path)
    (tmp_path / "config.yaml").write_text("name: x")
    with pytest.raises(CheckpointError, match="this run has no checkpoint yet"):
        mtl_lightning.load(tmp_path)
    (tmp_path / "best.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint that can be loaded safely"):
        mtl_lightning.load(tmp_path)
    with pytest.raises(ConfigError, match="tasks: there is no task colour; the model has shape, present"):
        mtl_lightning.load(place / "runs/all", tasks=["colour"])


def test_no_lightning_is_needed(place: Path) -> None:
    code = (
        "import sys; sys.modules['lightning'] = sys.modules['wandb'] = None\n"
        "import mtl_lightning\n"
        "assert 'torch' not in sys.modules\n"
        f"model = mtl_lightning.load({str(place / 'runs/all')!r})\n"
        f"print(model.predict({str(place / 'pictures/a.png')!r})['shape'].name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("sphere", "box", "cylinder", "cone")


def test_a_folder_needs_none_of_the_runs_data(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    predict(place, "--inputs", str(place / "pictures"), "--folder", str(out), "--data.init_args.scene_seed=5")
    table = rows(out)
    assert [row["id"] for row in table] == ["a.png", "grey.png", "more/b.jpg", "more/c.png"]
    assert Image.open(out / table[2]["segmentation"]).size == (22, 22)
    assert np.load(out / table[0]["depth"]).shape == (30, 41)
    streams = capfd.readouterr()
    assert "Ignored, no pictures by their names: 1 of 5 files (notes.txt)" in streams.out
    assert "labelled / all rows" not in streams.out
    model = mtl_lightning.load(place / "runs/all")
    for row in table:
        assert model.predict(place / "pictures" / row["id"])["shape"].name == row["shape"]


def test_a_manifest_and_a_single_picture(place: Path, tmp_path: Path) -> None:
    listing = place / "pictures" / "some.csv"
    listing.write_text("photo,comment\nmore/c.png,x\na.png,y\na.png,\n")
    try:
        predict(place, "--inputs", str(listing), "--column", "photo", "--folder", str(tmp_path / "listed"))
    finally:
        listing.unlink()
    assert [row["id"] for row in rows(tmp_path / "listed")] == ["more/c.png", "a.png", "a.png"]
    predict(place, "--inputs", str(place / "pictures/a.png"), "--folder", str(tmp_path / "one"))
    (row,) = rows(tmp_path / "one")
    assert row["id"] == "a.png" and (tmp_path / "one" / row["segmentation"]).is_file()


def fails(place: Path, capfd: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as caught:
        predict(place, *args)
    error = capfd.readouterr().err
    assert caught.value.code == 1, error
    assert "Traceback" not in error
    return error[error.index("error: ") :]


def test_bad_inputs(place: Path, written: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (written / "predictions.csv").read_bytes()
    assert "has files already; move them away, or choose another place with --folder" in fails(place, capfd)
    assert (written / "predictions.csv").read_bytes() == before
    new = ["--folder", str(tmp_path / "new")]
    assert "there is no such file or folder" in fails(place, capfd, *new, "--inputs", str(tmp_path / "nothing"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "there is no picture in this folder or below, but no file at all" in fails(place, capfd, *new, "--inputs", str(empty))
    (empty / "notes.txt").write_text("x")
    assert "but other files (notes.txt)" in fails(place, capfd, *new, "--inputs", str(empty))
    (empty / "fake.png").write_text("no picture at all")
    assert "one picture that cannot be read:\n  fake.png: " in fails(place, capfd, *new, "--inputs", str(empty))
    listing = empty / "list.csv"
    listing.write_text("image\nfake.png\nabsent.png\n")
    message = fails(place, capfd, *new, "--inputs", str(listing))
    assert "2 pictures that cannot be read" in message and "absent.png: there is no file absent.png" in message
    assert "has no column 'photo'; its columns are image" in fails(place, capfd, *new, "--inputs", str(listing), "--column=photo")
    listing.write_text("image,x\n,1\n")
    assert "there is no picture in column 'image' of list.csv, row 2" in fails(place, capfd, *new, "--inputs", str(listing))
    listing.write_text("image\n")
    assert "the table has no row" in fails(place, capfd, *new, "--inputs", str(listing))
    assert not (tmp_path / "new").exists()


def test_several_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"predict runs on one process: set trainer.devices to 1"):
        PredictionWriter(tmp_path / "out").on_predict_start(SimpleNamespace(world_size=2), None)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_unreadable_pictures_are_skipped_and_listed(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    whole = (place / "pictures/a.png").read_bytes()
    for name, content in {"a.png": whole, "b.png": whole[: len(whole) // 2], "c.png": whole}.items():
        (pictures / name).write_bytes(content)
    out = tmp_path / "out"
    # Its header is fine, so it is found when its turn comes: what looks finished must not be there.
    message = fails(place, capfd, "--inputs", str(pictures), "--folder", str(out), "--data.init_args.batch_size=1")
    assert "b.png cannot be read" in message and "--on_error skip" in message
    assert not out.exists()
    assert (tmp_path / "out.partial" / "predictions.csv").exists()
    assert "a predict is running, or was cut off" in fails(place, capfd, "--inputs", str(pictures), "--folder", str(out))
    out = tmp_path / "second"
    predict(place, "--inputs", str(pictures), "--folder", str(out), "--on_error=skip", "--data.init_args.num_workers=1")
    assert [row["id"] for row in rows(out)] == ["a.png", "c.png"]
    with (out / "skipped.csv").open(newline="") as file:
        ((name, reason),) = list(csv.reader(file))[1:]
    assert name == "b.png" and "cannot be read" in reason
    assert "Left out, cannot be read: 1 pictures, all in skipped.csv (b.png: " in capfd.readouterr().out


def test_crops_are_undone() -> None:
    """Of what lies outside of an evaluation crop nothing is said; boxes are in pixels of the stored picture."""
    tasks: dict[str, Task] = {"box": Regression(names=["x0", "y0", "x1", "y1"], mean=0.5, std=0.2)}
    tasks |= {"segmentation": SemanticSegmentation(classes=SEGMENTS), "depth": Depth(), "normals": SurfaceNormals()}
    tasks["box"].learn([torch.rand(4)])
    model = MultiTaskModel(tasks, HardSharing(SmallCNN([8, 8]), list(tasks)))
    picture = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    predictor = mtl_lightning.Predictor(model, tasks, Preparation([CenterCrop(16)]))
    result, inner = predictor.predict([picture, picture[12:28, 7:23]])
    mask = result["segmentation"].mask
    assert mask.shape == (40, 30)
    assert (mask[12:28, 7:23] == inner["segmentation"].mask).all()
    assert (np.delete(mask, np.s_[12:28], 0) == 255).all() and (mask[12:28, :7] == 255).all() and (mask[12:28, 23:] == 255).all()
    assert (result["depth"].depth[:12] == 0).all() and not result["normals"].normals[:, 23:].any()
    assert np.allclose(result["depth"].depth[12:28, 7:23], inner["depth"].depth, rtol=1e-5)
    assert result["box"].x0 == pytest.approx(inner["box"].x0 + 7, abs=1e-3)
    assert result["box"].y1 == pytest.approx(inner["box"].y1 + 12, abs=1e-3)


def test_a_data_module_that_fixes_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data.py").write_text(
        "from tests.tiny import TinyDataModule\n"
        "class Own(TinyDataModule):\n"
        "    def __init__(self, rows: int = 16) -> None:\n"
        "        super().__init__(rows=rows, image_size=12, num_workers=0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    content = yaml.safe_load(TINY.read_text())
    content["data"] = {"class_path": "own_data.Own"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    main(["fit", "--config", str(tmp_path / "own.yaml"), "--runs", str(tmp_path), "--trainer.max_epochs=1"])
    model = mtl_lightning.load(tmp_path / "tiny")
    assert model.preparation.image_size == 12
    assert model.predict(np.zeros((30, 20, 3), np.uint8))["mask"].mask.shape == (30, 20)
