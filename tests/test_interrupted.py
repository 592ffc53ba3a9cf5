"""Kills at awkward moments: between two files, in a line, after training but before the report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from mtl_lightning import runs
from mtl_lightning.callbacks.metrics_csv import MetricsCSV
from mtl_lightning.main import main
from mtl_lightning.runs import keep_config, latest_run
from tests.killer import Stopped

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
STOP = "--trainer.callbacks+={{class_path: tests.killer.StopAt, init_args: {{step: {step}}}}}"
EARLY = "--trainer.callbacks+={{class_path: EarlyStopping, init_args: {{monitor: val/loss, mode: max, patience: {patience}}}}}"


class Passive(Callback):
    """Stops a run without being configured to: where a run ends would else be configured in another way."""

    stop = -1

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.stop:
            raise Stopped


def fit(root: Path, *args: str) -> Path:
    main(["fit", "--config", str(CONF), "--runs", str(root), *args])
    return root / "tiny"


def last(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return found


def test_a_run_keeps_its_configuration_when_a_kill_comes_between_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "net"
    keep_config(folder, "name: net\nlr: 1\n")
    write, written = runs.replace_text, []

    def killed(path: Path, text: str) -> None:
        if written:
            raise Stopped
        written.append(path)
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "replace_text", killed)
        with pytest.raises(Stopped):
            keep_config(folder, "name: net\nlr: 2\n")
    assert latest_run(tmp_path, "net") == folder
    keep_config(folder, "name: net\nlr: 2\n")
    keep_config(folder, "name: net\nlr: 3\n")
    keep_config(folder, "name: net\nlr: 3\n")
    kept = {path.name: path.read_text()[-2] for path in folder.glob("config*")}
    assert kept == {"config.1.yaml": "1", "config.2.yaml": "2", "config.yaml": "3"}


@pytest.mark.parametrize("half", ["4,0,val/loss,0.1", "4,0,val/lo", "4,0,val/loss,", "4"])
def test_a_line_that_a_kill_cut_is_left_out(tmp_path: Path, half: str) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"a": 1.5, "b": float("nan")}, step=4)
    logger.log_metrics({"a": 2.5}, step=5)
    logger.finalize("success")
    with logger.path.open("a") as file:
        file.write(half)
    logger.cut(5)
    logger.log_metrics({"a": 3.5}, step=5)
    assert logger.path.read_text().split() == ["step,epoch,name,value", "4,0,a,1.5", "4,0,b,nan", "5,0,a,3.5"]


def test_the_loss_of_a_task_that_is_absent_is_still_that_of_before(tmp_path: Path) -> None:
    rare = ["--data.init_args.hidden={mask: 0.95}", "--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=1"]
    whole = fit(tmp_path / "whole", *rare)
    lines = (whole / "metrics.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    seen = min(int(row[0]) for row in rows if row[2] == "weight/mask" and row[3] == "1.0")
    absent = min(int(row[0]) for row in rows if row[2:] == ["weight/mask", "0.0"] and int(row[0]) > seen)
    with pytest.raises(Stopped):
        fit(tmp_path / "cut", *rare, STOP.format(step=absent))
    cut = fit(tmp_path / "cut", *rare, "--ckpt_path=last")
    assert (cut / "metrics.csv").read_text().splitlines() == lines


def test_a_run_that_early_stopping_ended_stays_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = ["--trainer.max_epochs=5", EARLY.format(patience=1)]
    folder = fit(tmp_path, *args)
    steps, summary = last(folder)["global_step"], (folder / "summary.json").read_text()
    assert 6 < steps < 30
    # As a kill during the report leaves it.
    (folder / "summary.json").unlink()
    with caplog.at_level("INFO"):
        fit(tmp_path, *args, "--ckpt_path=last")
    assert "stays so" in caplog.text
    assert last(folder)["global_step"] == steps
    assert (folder / "summary.json").read_text() == summary
    fit(tmp_path, args[0], EARLY.format(patience=50), "--ckpt_path=last")
    state = last(folder)
    assert state["global_step"] == 30
    assert [part["patience"] for part in state["callbacks"].values() if "patience" in part] == [50]


@pytest.mark.slow
def test_a_stop_that_waits_for_the_least_epochs_is_not_forgotten(tmp_path: Path) -> None:
    args = ["--trainer.max_epochs=6", "--trainer.min_epochs=4", "--checkpoint.every_n_steps=2", EARLY.format(patience=1),
            "--trainer.callbacks+=tests.test_interrupted.Passive"]  # fmt: skip
    whole = fit(tmp_path / "whole", *args)
    with pytest.raises(Stopped), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passive, "stop", 21)
        fit(tmp_path / "cut", *args)
    cut = fit(tmp_path / "cut", *args, "--ckpt_path=last")
    assert last(whole)["global_step"] == 24
    assert (cut / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert (cut / "summary.json").read_text() == (whole / "summary.json").read_text()


def test_the_best_epoch_of_a_folder_that_was_moved_is_still_the_best(tmp_path: Path) -> None:
    args = ["--checkpoint.monitor=val/loss"]
    fit(tmp_path / "before", *args, "--trainer.max_epochs=2")
    (tmp_path / "before").rename(tmp_path / "after")
    # At this rate the third epoch is worse.
    worse = ["--model.optimizer.init_args.lr=1.0"]
    folder = fit(tmp_path / "after", *args, *worse, "--trainer.max_epochs=3", "--ckpt_path=last")
    assert torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 12
    assert not (tmp_path / "before").exists()


def test_a_report_that_a_kill_prevented_is_made_where_nothing_is_validated(tmp_path: Path) -> None:
    args = ["--trainer.limit_val_batches=0"]
    folder = fit(tmp_path, *args)
    before = (folder / "summary.json").read_text()
    assert "train/level/loss" in before
    told = json.loads(before)
    del told["train"]
    (folder / "summary.json").write_text(json.dumps(told))
    (folder / "summary.md").unlink()
    fit(tmp_path, *args, "--ckpt_path=last")
    assert (folder / "summary.json").read_text() == before
    assert "train/level/loss" in (folder / "summary.md").read_text()


def test_a_run_that_was_killed_before_it_saved_is_started_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped):
        fit(tmp_path, "--trainer.max_epochs=1", STOP.format(step=1))
    with pytest.raises(SystemExit):
        fit(tmp_path, "--trainer.max_epochs=1", "--ckpt_path=last")
    assert "it ended before it saved anything; run fit without --ckpt_path" in capsys.readouterr().err
    fit(tmp_path, "--trainer.max_epochs=1")
    fit(tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert last(tmp_path / "tiny-2")["global_step"] == 12
    with pytest.raises(SystemExit):
        fit(tmp_path, "--trainer.limit_val_batches=0", "--trainer.max_epochs=1", "--name=blind")
        fit(tmp_path, "--name=blind", "--ckpt_path=best")
    assert "no checkpoints/best.ckpt, only a last one: give last" in capsys.readouterr().err


def test_an_earlier_configuration_is_never_overwritten(tmp_path: Path) -> None:
    for rate in range(4):
        keep_config(tmp_path, f"lr: {rate}\n")
    (tmp_path / "config.1.yaml").unlink()
    keep_config(tmp_path, "lr: 4\n")
    kept = {path.name: path.read_text()[-2] for path in tmp_path.glob("config*")}
    assert kept == {"config.2.yaml": "1", "config.3.yaml": "2", "config.4.yaml": "3", "config.yaml": "4"}
