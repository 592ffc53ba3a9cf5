"""Whole runs, as a user types them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mtl_lightning.main import main

ROOT = Path(__file__).parents[1]
CONF = ROOT / "tests" / "conf" / "tiny.yaml"


def call(command: str, runs: Path, *args: str) -> None:
    main([command, "--config", str(CONF), "--runs", str(runs), *args])


def values(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six epochs."""
    folder = tmp_path_factory.mktemp("runs")
    call("fit", folder, "--trainer.max_epochs=6", "--data.init_args.rows=96")
    return folder


def test_fit_leaves_everything_in_its_folder(runs: Path) -> None:
    run = runs / "tiny"
    assert {path.name for path in run.iterdir()} >= {
        *("config.yaml", "metrics.csv", "summary.json", "summary.md", "checkpoints"),
        *("curves.png", "predictions_val.png", "color_confusion_val.png", "mask_iou_val.png"),
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 6
    assert config["model"]["tasks"]["color"]["init_args"]["weight"] == 1.0
    summary = json.loads((run / "summary.json").read_text())["val"]
    best = max(values(run, "val/score"))
    assert summary["checkpoint"] == "best.ckpt"
    assert summary["score"] == pytest.approx(best, abs=1e-6)
    assert summary["score"] > 0.5
    for task in ("color", "level", "mask"):
        assert summary["tasks"][task]["skill"] > 0, task
        assert summary["tasks"][task]["labelled_rows"] == 21
        assert f"| {task} |" in (run / "summary.md").read_text()
    assert summary["tasks"]["level"]["labelled_elements"] == 42
    assert summary["tasks"]["mask"]["labelled_elements"] == 21 * 16 * 16


def test_metrics_csv_has_every_value_once(runs: Path) -> None:
    with (runs / "tiny" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["step"], row["name"]) for row in rows}) == len(rows)
    names = {row["name"] for row in rows}
    for task, metric in {"color": "accuracy", "level": "rmse", "mask": "miou"}.items():
        assert names >= {f"val/{task}/{metric}", f"val/{task}/loss", f"val/{task}/count", f"train/{task}/loss", f"weight/{task}"}
    assert names >= {"val/score", "val/loss", "train/loss", "lr/encoder", "lr/heads"}
    counts = [float(row["value"]) for row in rows if row["name"] == "train/color/rows"]
    assert len(set(counts)) == 1 and 0 < counts[0] < 96
    assert {row["epoch"] for row in rows} == {str(epoch) for epoch in range(6)}


def test_test_and_validate_take_the_best_and_write_into_its_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((runs / "tiny" / "summary.json").read_text())["val"]
    call("validate", runs)
    call("test", runs)
    summary = json.loads((runs / "tiny" / "summary.json").read_text())
    assert summary["val"] == before
    assert summary["test"]["checkpoint"] == "best.ckpt"
    assert summary["test"]["score"] > 0.4
    assert (runs / "tiny" / "predictions_test.png").exists()
    assert [path.name for path in runs.iterdir()] == ["tiny"]
    assert "tiny: test of best.ckpt" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
def test_a_second_run_of_the_same_name_gets_its_own_folder(tmp_path: Path) -> None:
    call("fit", tmp_path, "--trainer.max_epochs=1")
    first = (tmp_path / "tiny" / "metrics.csv").read_bytes()
    call("fit", tmp_path, "--trainer.max_epochs=1", "--seed_everything=1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny-2"]
    assert (tmp_path / "tiny" / "metrics.csv").read_bytes() == first
    assert (tmp_path / "tiny-2" / "metrics.csv").read_bytes() != first


@pytest.mark.usefixtures("no_pictures")
def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    random = "--data.init_args.train_transforms=[{class_path: torchvision.transforms.v2.RandomHorizontalFlip}]"
    for name, workers in (("one", 0), ("two", 0), ("three", 2)):
        call("fit", tmp_path, f"--name={name}", random, f"--data.init_args.num_workers={workers}")
    one, two, three = ((tmp_path / name / "metrics.csv").read_text() for name in ("one", "two", "three"))
    assert one == two
    assert one == three


def test_only_trains_a_part_of_the_tasks(tmp_path: Path) -> None:
    call("fit", tmp_path, '--model.only=["mask"]', "--name=alone")
    summary = json.loads((tmp_path / "alone" / "summary.json").read_text())["val"]
    assert list(summary["tasks"]) == ["mask"]
    assert summary["score"] == pytest.approx(summary["tasks"]["mask"]["skill"])
    state = torch.load(tmp_path / "alone/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not [key for key in state if "color" in key or "level" in key]
    call("test", tmp_path, '--model.only=["mask"]', "--name=alone")


def test_auxiliary_tasks_are_trained_and_left_out_of_the_score(tmp_path: Path) -> None:
    call("fit", tmp_path, "--model.tasks.mask.init_args.auxiliary=true")
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())["val"]
    assert summary["tasks"]["mask"]["auxiliary"]
    skills = [summary["tasks"][task]["skill"] for task in ("color", "level")]
    assert summary["score"] == pytest.approx(sum(skills) / 2)
    losses = values(tmp_path / "tiny", "train/mask/loss")
    assert losses[-1] < losses[0]
    main_losses = [summary["tasks"][task]["metrics"]["loss"] for task in ("color", "level")]
    assert values(tmp_path / "tiny", "val/loss") == pytest.approx([sum(main_losses)] * 2, rel=2)


def test_learning_rate_multipliers(tmp_path: Path) -> None:
    call("fit", tmp_path, "--model.encoder_lr=0", "--model.heads_lr=0.5", "--trainer.max_epochs=1")
    run = tmp_path / "tiny"
    assert set(values(run, "lr/encoder")) == {0.0}
    assert set(values(run, "lr/heads")) == {0.005}


def test_multipliers_hold_under_one_cycle(tmp_path: Path) -> None:
    schedule = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.02, "total_steps": 12}}
    call(
        *("fit", tmp_path, f"--model.scheduler.scheduler={json.dumps(schedule)}", "--model.scheduler.interval=step"),
        *("--model.encoder_lr=0.1", "--trainer.log_every_n_steps=1"),
    )
    encoder, heads = values(tmp_path / "tiny", "lr/encoder"), values(tmp_path / "tiny", "lr/heads")
    assert max(heads) == pytest.approx(0.02, rel=0.05)
    assert encoder == pytest.approx([rate / 10 for rate in heads])


@pytest.mark.usefixtures("no_pictures")
def test_schedules_by_epoch_and_on_a_plateau(tmp_path: Path) -> None:
    plateau = {
        "class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
        "init_args": {"monitor": "val/loss", "patience": 0, "threshold": 10.0, "factor": 0.1},
    }
    call("fit", tmp_path, f"--model.scheduler.scheduler={json.dumps(plateau)}", "--model.scheduler.monitor=val/loss",
         "--trainer.max_epochs=3", "--name=plateau")  # fmt: skip
    assert min(values(tmp_path / "plateau", "lr/heads")) < 0.01
    step = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}
    call("fit", tmp_path, f"--model.scheduler.scheduler={json.dumps(step)}", "--trainer.max_epochs=3", "--name=step")
    assert sorted(set(values(tmp_path / "step", "lr/heads"))) == pytest.approx([0.0025, 0.005, 0.01])


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(["--data.init_args.channels=1", "--model.encoder.init_args.in_channels=1"], id="grey"),
        pytest.param(["--data.init_args.image_size=[20, 28]"], id="not square", marks=pytest.mark.slow),
        pytest.param(
            ["--data.init_args.sizes=[9, 16]", "--model.tasks.mask.init_args.head=UNet"], id="every picture another size"
        ),
        pytest.param(["--trainer.precision=bf16-mixed"], id="bf16"),
        pytest.param(["--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.1"], id="accumulation, clipping"),
        pytest.param(["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"], id="limits", marks=pytest.mark.slow),
        pytest.param(["--trainer.check_val_every_n_epoch=2", "--trainer.num_sanity_val_steps=0"], id="validation now and then"),
        pytest.param(["--trainer.max_epochs=-1", "--trainer.max_steps=5"], id="steps", marks=pytest.mark.slow),
    ],
)
def test_runs_of_other_shapes_and_settings(tmp_path: Path, args: list[str]) -> None:
    call("fit", tmp_path, *args)
    call("test", tmp_path, *args)
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    assert set(summary["test"]["tasks"]) == {"color", "level", "mask"}
    assert (tmp_path / "tiny" / "predictions_val.png").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("weighting", ["Fixed", "DataSize", "UW", "FAMO"])
def test_weightings_run_and_are_resumed(tmp_path: Path, weighting: str) -> None:
    call("fit", tmp_path, f"--model.weighting={weighting}", "--trainer.max_epochs=3")
    weights = {task: values(tmp_path / "tiny", f"weight/{task}") for task in ("color", "level", "mask")}
    assert all(weight and min(weight) >= 0 for weight in weights.values())
    if weighting == "Fixed":
        assert weights["color"] == pytest.approx([1 / 3] * len(weights["color"]))
    call("fit", tmp_path, f"--model.weighting={weighting}", "--trainer.max_epochs=4", "--ckpt_path=last")
    assert len(values(tmp_path / "tiny", "val/score")) == 4


def test_a_later_config_overlays_and_the_command_line_wins(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer: {max_epochs: 1}\nmodel: {encoder_lr: 0.5}\n")
    call("fit", tmp_path / "runs", "--config", str(overlay), "--model.encoder_lr=0.25")
    config = yaml.safe_load((tmp_path / "runs/tiny/config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 1
    assert config["model"]["encoder_lr"] == 0.25
    assert list(config["model"]["tasks"]) == ["color", "level", "mask"]


@pytest.mark.usefixtures("no_pictures")
def test_the_printed_and_the_saved_configuration_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        call("fit", tmp_path, "--print_config")
    assert caught.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert not (tmp_path / "tiny").exists()
    main(["fit", "--config", str(printed), "--runs", str(tmp_path / "one")])
    main(["fit", "--config", str(tmp_path / "one/tiny/config.yaml"), "--runs", str(tmp_path / "two")])
    assert (tmp_path / "one/tiny/metrics.csv").read_text() == (tmp_path / "two/tiny/metrics.csv").read_text()


@pytest.mark.parametrize("args", [["--help"], ["fit", "--help"]])
def test_help(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    words = ("fit", "test", "predict") if len(args) == 1 else ("--model.tasks", "--checkpoint.monitor", "--ckpt_path", "--runs")
    assert all(word in text for word in words)


def test_wandb_offline_with_one_line_of_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"offline": True, "save_dir": "wandb_here"}}
    call("fit", tmp_path / "runs", f"--trainer.logger={json.dumps(logger)}")
    assert list((tmp_path / "wandb_here").glob("**/*.wandb"))
    assert values(tmp_path / "runs/tiny", "val/score")


def test_fit_from_a_path_starts_a_new_folder(tmp_path: Path) -> None:
    call("fit", tmp_path)
    call("fit", tmp_path, "--ckpt_path", str(tmp_path / "tiny/checkpoints/last.ckpt"), "--trainer.max_epochs=3")
    assert len(values(tmp_path / "tiny", "val/score")) == 2
    assert len(values(tmp_path / "tiny-2", "val/score")) == 1


@pytest.mark.usefixtures("no_pictures")
def test_a_folder_may_have_colons_and_a_checkpoint_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, reads, original = tmp_path / "12:30:00", list[str](), torch.load

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        reads.append(str(getattr(file, "name", file)))
        return original(file, *args, **kwargs)

    call("fit", folder, "--trainer.limit_val_batches=0", "--trainer.max_steps=1")
    path = folder / "tiny/checkpoints/last.ckpt"
    monkeypatch.setattr(torch, "load", load)
    call("fit", folder, "--ckpt_path", str(path), "--trainer.limit_val_batches=0", "--trainer.max_steps=2")
    assert (folder / "tiny-2/checkpoints/last.ckpt").exists()
    assert len(reads) == 2, reads  # to see that it is whole, and by the trainer


def test_without_validation_there_is_a_last_checkpoint_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hide = "--data.init_args.hidden_eval={color: 1, level: 1, mask: 1}"
    call("fit", tmp_path, hide)
    assert sorted(path.name for path in (tmp_path / "tiny/checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert "WARNING" in capsys.readouterr().out


def test_a_metric_without_a_label_is_not_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("fit", tmp_path, "--data.init_args.hidden_eval={mask: 1}")
    run = tmp_path / "tiny"
    assert not values(run, "val/mask/miou")
    assert not values(run, "val/mask/loss")
    summary = json.loads((run / "summary.json").read_text())["val"]
    assert list(summary["tasks"]) == ["color", "level"]
    out = capsys.readouterr().out
    assert "no validation label for mask" in " ".join(out.split())


def test_another_optimizer_takes_none_of_the_first_ones_arguments(tmp_path: Path) -> None:
    args = ["--model.optimizer=torch.optim.SGD", "--trainer.max_epochs=1"]
    call("fit", tmp_path, *args)
    optimizer = yaml.safe_load((tmp_path / "tiny/config.yaml").read_text())["model"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    state = torch.load(tmp_path / "tiny/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.0}


def test_no_optimizer_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(CONF.read_text())
    del config["model"]["optimizer"]
    file = tmp_path / "none.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(file), "--runs", str(tmp_path / "runs")])
    assert caught.value.code == 2
    assert "optimizer" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_the_best_is_the_lowest_where_low_is_good(tmp_path: Path) -> None:
    call("fit", tmp_path, "--checkpoint.monitor=val/loss", "--trainer.max_epochs=4", "--model.optimizer.init_args.lr=0.1")
    losses = values(tmp_path / "tiny", "val/loss")
    best = torch.load(tmp_path / "tiny/checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == losses.index(min(losses))
    call("fit", tmp_path, "--checkpoint.monitor=val/mask/iou_dark", "--trainer.max_epochs=1")


def test_a_schedule_by_epoch_reaches_its_end(tmp_path: Path) -> None:
    call("fit", tmp_path, "--model.scheduler.scheduler=WarmupCosine", "--model.scheduler.scheduler.init_args.warmup=0",
         "--trainer.max_epochs=4")  # fmt: skip
    rates = sorted(set(values(tmp_path / "tiny", "lr/heads")), reverse=True)
    assert rates == pytest.approx([0.01 * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4)])


def test_the_weightings_own_rate_holds_under_a_schedule(tmp_path: Path) -> None:
    schedule = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.01, "total_steps": 12}}
    call("fit", tmp_path, "--model.weighting=UW", "--model.weighting.lr=0.05", "--trainer.log_every_n_steps=1",
         f"--model.scheduler.scheduler={json.dumps(schedule)}", "--model.scheduler.interval=step")  # fmt: skip
    heads, weighting = values(tmp_path / "tiny", "lr/heads"), values(tmp_path / "tiny", "lr/weighting")
    assert weighting == pytest.approx([5 * rate for rate in heads])


@pytest.mark.usefixtures("no_pictures")
def test_names_that_look_like_numbered_runs_are_told_apart(tmp_path: Path) -> None:
    for name in ("net", "net-18"):
        call("fit", tmp_path, f"--name={name}", "--trainer.max_epochs=1")
    call("test", tmp_path, "--name=net")
    assert "test" in json.loads((tmp_path / "net/summary.json").read_text())
    assert "test" not in json.loads((tmp_path / "net-18/summary.json").read_text())


def test_a_run_that_validates_nothing_has_its_summary_all_the_same(tmp_path: Path) -> None:
    call("fit", tmp_path, "--data.init_args.val_rows=0")
    run = tmp_path / "tiny"
    assert json.loads((run / "summary.json").read_text())["train"]["train/color/loss"] > 0
    assert "train/color/loss" in (run / "summary.md").read_text()
    assert (run / "curves.png").exists()
    call("test", tmp_path, "--data.init_args.val_rows=0")
    call("fit", tmp_path, "--data.init_args.val_rows=0", "--ckpt_path=last")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["train"]["train/color/loss"] > 0
    assert summary["test"]["tasks"].keys() == {"color", "level", "mask"}


def test_a_trial_of_the_code_is_no_run(tmp_path: Path) -> None:
    call("fit", tmp_path, "--trainer.fast_dev_run=true")
    assert not list(tmp_path.iterdir())


def test_predictions_have_the_size_of_their_pictures(tmp_path: Path) -> None:
    call("fit", tmp_path, "--data.init_args.sizes=[9, 16]", "--trainer.max_epochs=1")
    call("predict", tmp_path, "--data.init_args.sizes=[9, 16]")
    heights = [Image.open(path).height for path in sorted((tmp_path / "tiny/predictions/mask").iterdir())]
    assert heights == [9 + row % 8 for row in range(21)]


def test_names_that_are_formulas_to_matplotlib(tmp_path: Path) -> None:
    call("fit", tmp_path, r"--model.tasks.color.init_args.classes=['$\\b$ x', 'a_{', '$$']", "--trainer.max_epochs=1")
    assert (tmp_path / "tiny/color_confusion_val.png").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("hidden", ["0.9", "0.8"])
def test_a_loss_scaler_and_steps_without_any_label(tmp_path: Path, hidden: str) -> None:
    plugin = {
        "class_path": "lightning.pytorch.plugins.MixedPrecision",
        "init_args": {"precision": "16-mixed", "device": "cpu", "scaler": {"class_path": "torch.amp.GradScaler"}},
    }
    plugin["init_args"]["scaler"]["init_args"] = {"device": "cpu"}  # type: ignore[index]
    call("fit", tmp_path, f"--trainer.plugins={json.dumps(plugin)}", "--data.init_args.batch_size=2",
         f"--data.init_args.hidden={{color: {hidden}, level: {hidden}, mask: {hidden}}}", "--seed_everything=3")  # fmt: skip
    assert len(values(tmp_path / "tiny", "val/score")) == 2
