"""Weights & Biases, read back from the files of offline runs."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtl_lightning.analysis.pictures import Row
from mtl_lightning.callbacks import wandb_runs
from mtl_lightning.callbacks.tracking import boxes
from mtl_lightning.main import main
from mtl_lightning.tasks import Regression
from tests.wandb_file import OfflineRun, read

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
OFFLINE = ["--trainer.logger=WandbLogger", "--trainer.logger.offline=true"]
wandb = pytest.importorskip("wandb")


def fit(runs: Path, *args: str) -> None:
    main(["fit", "--config", str(CONF), "--runs", str(runs), "--trainer.log_every_n_steps=1", *args])


def offline(folder: Path) -> list[OfflineRun]:
    return [read(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, and what it looked like before it went on for a third."""
    runs = tmp_path_factory.mktemp("runs")
    fit(runs, *OFFLINE, "--tracking.samples=2")
    return runs / "tiny"


def test_an_offline_run_holds_everything(run: Path) -> None:
    (kept,) = offline(run)
    identity = json.loads((run / "wandb.json").read_text())
    assert (kept.id, kept.project, kept.name, kept.exit_code) == (identity["id"], "mtl_lightning", "tiny", 0)
    assert kept.config["model"]["tasks"]["mask"]["init_args"]["classes"] == ["dark", "bright"]
    assert kept.config["trainer"]["max_epochs"] == 2
    rows = [(row.get("trainer/global_step"), row) for row in kept.history]
    for key in ("step/color/loss", "weight/mask", "lr/heads"):
        assert [step for step, row in rows if key in row] == list(range(12)), key
    for key in ("train/level/loss", "val/color/accuracy", "val/score"):
        assert [step for step, row in rows if key in row] == [5, 11], key
    assert kept.metrics["val/mask/miou"] == kept.metrics["*"] == "trainer/global_step"
    table = next(row for _, row in rows if "summary/val/path" in row)
    (folder,) = run.glob("wandb/offline-run-*/files")
    told = json.loads((folder / table["summary/val/path"]).read_text())
    summary = json.loads((run / "summary.json").read_text())["val"]
    assert told["columns"] == ["task", "metric", "better", "model", "trivial", "labelled"]
    miou = summary["tasks"]["mask"]["metrics"]["miou"], summary["tasks"]["mask"]["trivial"]["miou"]
    assert ["mask", "miou", "higher", *miou, 21 * 16 * 16] in told["data"]
    assert (kept.summary["best/val/score"], kept.summary["trivial/val/mask/miou"]) == (summary["score"], miou[1])
    assert {key.split("/")[1] for row in kept.history for key in row if key.startswith("report/")} == {
        path.stem for path in run.glob("*.png")
    }


def test_samples_are_pictures_with_captions_and_masks(run: Path) -> None:
    (kept,) = offline(run)
    (folder,) = run.glob("wandb/offline-run-*/files")
    sent = [row for row in kept.history if "samples/pictures/count" in row]
    assert [row["trainer/global_step"] for row in sent] == [5, 11]
    first, last = sent
    assert first["samples/pictures/count"] == 2
    captions = first["samples/pictures/captions"]
    assert [text.splitlines()[0] for text in captions] == [text.splitlines()[0] for text in last["samples/pictures/captions"]]
    names = [text.splitlines()[0] for text in captions]
    assert all("color: " in text and "truth: " in text and "level: " in text for text in captions)
    masks = first["samples/pictures/all_masks"][0]
    assert masks.keys() == {"mask", "mask_truth"}
    from tests.tiny import TinyDataset

    data = TinyDataset("val", 21, 2, {}, (16, 16))
    for name, file in zip(names, first["samples/pictures/filenames"], strict=True):
        picture = np.asarray(Image.open(folder / file))
        assert np.array_equal(picture, data.pictures[data.ids.index(name)].transpose(1, 2, 0))
    truth = np.asarray(Image.open(folder / masks["mask_truth"]["path"]))
    assert np.array_equal(truth, data.target("mask", data.ids.index(names[0])).numpy())


def test_the_run_is_in_checkpoints_and_goes_on_after_a_resume(run: Path) -> None:
    identity = json.loads((run / "wandb.json").read_text())
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["mtl_wandb"] == identity
    assert identity["id"] not in (run / "config.yaml").read_text(), "a run of that configuration would go on in this one"
    (run / "wandb.json").unlink()
    fit(run.parent, *OFFLINE, "--tracking.samples=0", "--trainer.max_epochs=3", "--ckpt_path=last")
    first, second = offline(run)
    assert first.id == second.id == identity["id"]
    assert [row["trainer/global_step"] for row in second.history if "val/score" in row] == [17]
    assert not [key for row in second.history for key in row if key.startswith("samples")]
    fit(run.parent, *OFFLINE, "--trainer.max_epochs=1", "--tracking.samples=0")
    (other,) = offline(run.parent / "tiny-2")
    assert other.id != first.id
    assert wandb.run is None


def test_without_an_account_the_run_is_kept_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    wandb.teardown()
    fit(tmp_path / "runs", "--trainer.logger=WandbLogger", "--trainer.max_epochs=1", "--tracking.samples=0")
    (kept,) = offline(tmp_path / "runs/tiny")
    assert [row["trainer/global_step"] for row in kept.history if "val/score" in row] == [5]
    assert [str(warning.message) for warning in recwarn if "W&B cannot be used" in str(warning.message)]
    assert (tmp_path / "runs/tiny/summary.json").exists()


@pytest.mark.slow
def test_a_server_that_does_not_answer_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    wandb.teardown()
    start = time.monotonic()
    fit(tmp_path, "--trainer.logger=WandbLogger", "--trainer.max_epochs=1", "--tracking.samples=0")
    assert time.monotonic() - start < 60
    (kept,) = offline(tmp_path / "tiny")
    assert kept.id == json.loads((tmp_path / "tiny/wandb.json").read_text())["id"]
    assert [str(warning.message) for warning in recwarn if "W&B cannot be used" in str(warning.message)]


def test_without_wandb_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_runs, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, *OFFLINE)
    assert caught.value.code == 1
    assert 'pip install "mtl-lightning[wandb]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_is_marked_and_the_next_one_is_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, *OFFLINE, "--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=1.0e30")
    (kept,) = offline(tmp_path / "tiny")
    assert kept.exit_code == 1
    assert wandb.run is None


def test_boxes_stay_in_the_picture() -> None:
    task = Regression(names=["x0", "y0", "x1", "y1"])
    task.name = "head"
    task.learn([torch.tensor([0.1, 0.2, 0.6, 0.7]), torch.tensor([0.3, 0.4, 0.8, 0.9])])
    row = Row(torch.zeros(3, 8, 8), {"head": torch.tensor([-9.0, 0.0, 0.0, 9.0])}, {"head": torch.tensor([0.1, 0.2, 0.6, 0.7])})
    found = boxes(row, {"head": task})
    assert found is not None
    assert found["head"]["box_data"][0]["position"] == pytest.approx({"minX": 0.0, "maxX": 0.7, "minY": 0.3, "maxY": 1.0})
    assert found["head_truth"]["box_data"][0]["position"]["minX"] == pytest.approx(0.1)


@pytest.mark.slow
def test_two_processes_track_one_run(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "mtl_lightning", "fit", "--config", str(CONF), "--runs", str(tmp_path), *OFFLINE]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (kept,) = offline(tmp_path / "tiny")
    assert [row["trainer/global_step"] for row in kept.history if "val/score" in row] == [2, 5]
    assert [row["samples/pictures/count"] for row in kept.history if "samples/pictures/count" in row]
