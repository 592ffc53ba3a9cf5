"""Whole runs with rare labels: thresholds are chosen on validation, kept, and used by test and predict."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mtl_lightning.main import main
from tests.imbalanced import RareDataset
from tests.killer import Stopped
from tests.test_distributed import numbers
from tests.test_resume import assert_same

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "imbalanced.yaml"
PLAIN = ["--model.tasks.marks.init_args.pos_weight=null", "--model.tasks.marks.init_args.focal_gamma=0"]
ALONE = ["--model.only=[marks]", "--data.balance=null"]


def call(command: str, runs: Path, *args: str) -> Path:
    main([command, "--config", str(CONF), "--runs", str(runs), *args])
    return runs / "rare"


def summary(folder: Path, split: str) -> dict[str, dict[str, dict[str, float]]]:
    tasks: dict[str, dict[str, dict[str, float]]] = json.loads((folder / "summary.json").read_text())[split]["tasks"]
    return tasks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("rare")
    call("fit", root, *PLAIN, "--trainer.max_epochs=5", "--trainer.num_sanity_val_steps=0")
    return root


def test_the_best_checkpoint_holds_the_thresholds_of_its_weights(runs: Path) -> None:
    folder = runs / "rare"
    first = summary(folder, "val")
    state = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()[1:]]
    for task in ("marks", "odd", "blob"):
        log_odds = state["state_dict"][f"tasks.{task}._extra_state"]["thresholds"]
        assert list(first[task]["thresholds"].values()) == pytest.approx([float(np.exp(-np.logaddexp(0, -x))) for x in log_odds])
        # The final validation chose them anew from the checkpoint's weights: it must find what was logged in that epoch.
        key = "miou" if task == "blob" else "f1"
        logged = [float(value) for _, epoch, name, value in rows if name == f"val/{task}/{key}" and int(epoch) == state["epoch"]]
        assert first[task]["metrics"][key] == pytest.approx(logged[0], abs=1e-6)
    assert first["kind"]["thresholds"] == {} and "threshold of red" in (folder / "summary.md").read_text()


def test_thresholds_of_validation_help_on_test_and_decide_predictions(runs: Path) -> None:
    folder = call("test", runs, *PLAIN, *(f"--model.tasks.{task}.init_args.threshold=0.5" for task in ("marks", "odd", "blob")))
    half = summary(folder, "test")
    call("test", runs, *PLAIN)
    chosen, thresholds = summary(folder, "test"), {task: part["thresholds"] for task, part in summary(folder, "val").items()}
    assert {task: part["thresholds"] for task, part in chosen.items()} == thresholds
    assert chosen["marks"]["metrics"]["f1"] > half["marks"]["metrics"].get("f1", 0) + 0.1
    assert chosen["odd"]["metrics"]["f1"] > half["odd"]["metrics"]["f1"] + 0.05
    for task in ("marks", "odd"):
        # What does not follow from decisions is as before.
        assert chosen[task]["metrics"]["auroc"] == half[task]["metrics"]["auroc"]
        assert chosen[task]["metrics"]["ece"] == half[task]["metrics"]["ece"]
    call("predict", runs, *PLAIN)
    truth = RareDataset("test", 120, 3, 0.0)
    with (folder / "predictions/predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    decided = np.array([[name in row["marks"].split("|") for name in ("red", "green", "blue")] for row in rows])
    hits = (decided & (truth.marks == 1)).sum(0)
    f1 = 2 * hits / (decided.sum(0) + truth.marks.sum(0))
    assert chosen["marks"]["metrics"]["f1"] == pytest.approx(f1.mean(), abs=1e-6)
    odd = np.array([row["odd"] == "yes" for row in rows])
    assert chosen["odd"]["metrics"]["accuracy"] == pytest.approx((odd == (truth.odd == 1)).mean(), abs=1e-6)


def test_pictures_of_reliability(runs: Path) -> None:
    names = {path.name for path in (runs / "rare").glob("*.png")}
    assert names >= {f"{task}_reliability_val.png" for task in ("marks", "kind", "odd")}


def test_a_resumed_run_chooses_the_same(tmp_path: Path) -> None:
    often = ["--data.rows=80", "--data.eval_rows=50", "--trainer.max_epochs=2"]
    often += ["--trainer.val_check_interval=3", "--checkpoint.every_n_steps=2"]
    call("fit", tmp_path / "whole", *often)
    for step in (4, 8):
        resume = ["--ckpt_path=last"] if step > 4 else []
        with pytest.raises(Stopped):
            stop = f"--trainer.callbacks+={{class_path: tests.killer.StopAt, init_args: {{step: {step}}}}}"
            call("fit", tmp_path / "cut", *often, *resume, stop)
    call("fit", tmp_path / "cut", *often, "--ckpt_path=last")
    assert_same(tmp_path / "whole/rare", tmp_path / "cut/rare")
    states = [torch.load(tmp_path / run / "rare/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "cut")]
    facts = [state["state_dict"]["tasks.marks._extra_state"] for state in states]
    assert facts[0] == facts[1] and len(facts[0]["thresholds"]) == len(facts[0]["pos_weight"]) == 3


@pytest.mark.parametrize("option", ["--data.hidden_val=1", "--trainer.limit_val_batches=0"])
def test_no_validation_label_is_an_error_before_training(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        call("fit", tmp_path, option)
    assert caught.value.code == 1 and not list(tmp_path.iterdir())
    message = capsys.readouterr().err
    assert "model.tasks.marks.init_args.threshold is validation, but no label of it is validated" in message


@pytest.mark.parametrize(
    ("option", "message"),
    [("--data.balance=marks", "balance is marks, which is a MultiLabel"), ("--data.hidden_val=1", "no label of it is validated")],
)
def test_check_says_so_too(option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        call("check", tmp_path, option)
    assert caught.value.code == 1
    assert message in capsys.readouterr().err


def test_check_of_what_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("check", tmp_path)
    assert "no fault was found" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["test", "predict"])
def test_thresholds_that_were_never_chosen_are_an_error(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("fit", tmp_path, *ALONE, "--model.tasks.marks.init_args.threshold=0.5", "--trainer.max_steps=1")
    with pytest.raises(SystemExit) as caught:
        call(command, tmp_path, *ALONE)
    assert caught.value.code == 1
    assert "the checkpoint has none that was chosen there" in capsys.readouterr().err
    assert not (tmp_path / "rare/predictions").exists()


@pytest.mark.slow
def test_two_processes_choose_what_one_does(tmp_path: Path) -> None:
    exact = ["--model.encoder.init_args.norm=false", "--model.tasks.blob.init_args.head.init_args.norm=false",
             "--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.05", "--trainer.precision=64-true",
             "--trainer.max_epochs=2", "--data.rows=36", "--data.eval_rows=35"]  # fmt: skip
    for name, more in (("one", ["--data.batch_size=8"]),
                       ("two", ["--data.batch_size=4", "--trainer.devices=2", "--trainer.strategy=ddp"])):  # fmt: skip
        command = [sys.executable, "-m", "mtl_lightning", "fit", "--config", str(CONF), "--runs", str(tmp_path / name)]
        command += [*exact, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[1], check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (summary(tmp_path / name / "rare", "val") for name in ("one", "two"))
    for task, part in one.items():
        assert part["thresholds"] == two[task]["thresholds"]
        assert part["metrics"] == pytest.approx(two[task]["metrics"], abs=1e-6)
    first, second = (numbers(tmp_path / name / "rare") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
