"""A run that was cut and resumed ends as if it had not been."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback

from experiments.crash.cases import PLATEAU
from mtl_lightning.callbacks.generators import generators
from mtl_lightning.main import main
from tests.killer import Stopped

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
RANDOM = [
    "--data.train_transforms+=torchvision.transforms.v2.RandomHorizontalFlip",
    "--data.train_transforms+=torchvision.transforms.v2.ColorJitter",
    "--model.tasks.color.init_args.head=MLP",
    "--model.tasks.color.init_args.head.init_args.dropout=0.3",
    "--model.scheduler.scheduler=WarmupCosine",
    "--model.scheduler.interval=step",
    "--trainer.max_epochs=3",
    "--checkpoint.every_n_steps=2",
]
BY_EPOCH = [
    "--model.scheduler.scheduler=torch.optim.lr_scheduler.StepLR",
    "--model.scheduler.scheduler.init_args.step_size=1",
    "--model.scheduler.scheduler.init_args.gamma=0.5",
    "--model.scheduler.interval=epoch",
]
FAMO = ["--model.weighting=FAMO", "--model.weighting.init_args.every=2"]
AT_FEATURES = ["--model.engine.gradients=features", "--model.engine.update_every=3"]


def fit(runs: Path, *args: str) -> None:
    main(["fit", "--config", str(CONF), "--runs", str(runs), *RANDOM, *args])


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flatten(item, f"{prefix}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for key, item in enumerate(value) for k, v in flatten(item, f"{prefix}/{key}").items()}
    return {prefix: value}


def assert_same(one: Path, other: Path) -> None:
    first, second = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "mtl_random", "epoch", "global_step"):
        mine, theirs = flatten(first[part]), flatten(second[part])
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            equal = torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key]  # type: ignore[arg-type]
            assert equal, f"{part}{key}"
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    assert (one / "summary.json").read_text() == (other / "summary.json").read_text()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"root": tmp_path_factory.mktemp("whole")}


@pytest.mark.parametrize(
    ("stops", "args"),
    [
        pytest.param([3, 7, 11], [], id="plain"),
        pytest.param([6, 12], ["--model.weighting=DWA", "--data.num_workers=1"], id="dwa, worker, at epoch ends"),
        pytest.param(
            [1, 5], ["--model.weighting=UW", "--trainer.accumulate_grad_batches=2"], id="uw, accumulation", marks=pytest.mark.slow
        ),
        pytest.param(
            [6, 13], [*PLATEAU, "--trainer.max_epochs=4"], id="plateau, at and after epoch ends", marks=pytest.mark.slow
        ),
        pytest.param(
            [6, 10],
            [*BY_EPOCH, "--trainer.max_epochs=4"],
            id="schedule by epoch, at and after epoch ends",
            marks=pytest.mark.slow,
        ),
        pytest.param([5, 9], ["--model.weighting=RLW", "--trainer.val_check_interval=2"], id="rlw, validation in mid-epoch"),
        pytest.param(
            [6, 12],
            ["--model.weighting=DWA", "--trainer.max_steps=100"],
            id="max_steps given, at epoch ends",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [5, 11], [*PLATEAU, "--trainer.val_check_interval=4"], id="plateau, validated before the cut", marks=pytest.mark.slow
        ),
        pytest.param(
            [7],
            [*PLATEAU, "--trainer.check_val_every_n_epoch=2"],
            id="plateau, not validated in every epoch",
            marks=pytest.mark.slow,
        ),
        pytest.param([3, 9], ["--model.weighting=MoDo"], id="further batches"),
        pytest.param(
            [3, 9], ["--model.weighting=MoDo", "--data.num_workers=1"], id="further batches, worker", marks=pytest.mark.slow
        ),
        pytest.param(
            [2, 5],
            [*FAMO, "--trainer.accumulate_grad_batches=2"],
            id="famo, every second step, accumulation",
            marks=pytest.mark.slow,
        ),
        pytest.param([4, 7], ["--model.weighting=NashMTL", *AT_FEATURES], id="nash at features, weights used three times"),
        pytest.param([5], ["--model.weighting=DBMTL"], id="memory over the parameters", marks=pytest.mark.slow),
    ],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, stops: list[int], args: list[str]) -> None:
    fit(tmp_path / "whole", *args)
    resume: list[str] = []
    for stop in stops:
        with pytest.raises(Stopped):
            fit(
                tmp_path / "cut",
                *args,
                *resume,
                f"--trainer.callbacks+={{class_path: tests.killer.StopAt, init_args: {{step: {stop}}}}}",
            )
        resume = ["--ckpt_path=last"] if (tmp_path / "cut/tiny/checkpoints/last.ckpt").exists() else []
        if not resume:
            (tmp_path / "cut").rename(tmp_path / f"cut-{stop}")
    fit(tmp_path / "cut", *args, *resume)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["tiny"]
    assert_same(tmp_path / "whole/tiny", tmp_path / "cut/tiny")


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    fit(tmp_path / "whole")
    command = [sys.executable, "-m", "mtl_lightning", "fit", "--config", str(CONF), "--runs", str(tmp_path / "cut"), *RANDOM]
    kill = "--trainer.callbacks+={class_path: tests.killer.StopAt, init_args: {step: 9, kill: true}}"
    killed = subprocess.run([*command, kill], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1])
    assert killed.returncode == -9, killed.stderr
    fit(tmp_path / "cut", "--ckpt_path=last")
    assert_same(tmp_path / "whole/tiny", tmp_path / "cut/tiny")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_signal_ends_the_run_between_two_steps(
    tmp_path: Path, name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path / "whole")
    send = f"--trainer.callbacks+={{class_path: tests.killer.SignalAt, init_args: {{step: 8, name: {name}}}}}"
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path / "cut", "--checkpoint.every_n_steps=null", send)
    assert caught.value.code == code
    assert "Stopped after step 9" in capsys.readouterr().out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    fit(tmp_path / "cut", "--ckpt_path=last")
    assert_same(tmp_path / "whole/tiny", tmp_path / "cut/tiny")


def test_only_runs_that_use_cards_keep_the_streams_of_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.zeros(1)])
    assert generators()["cuda"] == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert generators()["cuda"] != []


def test_streams_of_before_there_were_several_processes_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, "--name=old", "--trainer.max_steps=2")
    path = tmp_path / "old/checkpoints/last.ckpt"
    found = torch.load(path, weights_only=True)
    torch.save(found | {"mtl_random": found["mtl_random"][0]}, path)
    fit(tmp_path, "--name=old", "--trainer.max_steps=3", "--ckpt_path=last")
    assert torch.load(path, weights_only=True)["global_step"] == 3
    assert "draw from new streams" not in caplog.text


def test_changed_values_are_used_and_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Stopped):
        fit(tmp_path, "--trainer.callbacks+={class_path: tests.killer.StopAt, init_args: {step: 7}}")
    with caplog.at_level("INFO"):
        fit(tmp_path, "--ckpt_path=last", "--model.tasks.level.init_args.weight=77", "--trainer.log_every_n_steps=1")
    assert "model.tasks.level.init_args.weight: 1.0 -> 77.0" in caplog.text
    rows = [line.split(",") for line in (tmp_path / "tiny" / "metrics.csv").read_text().splitlines()]
    weights = {int(step): float(value) for step, _, name, value in rows[1:] if name == "weight/level" and float(value) > 0}
    assert {value for step, value in weights.items() if step < 6} == {1.0}
    assert {value for step, value in weights.items() if step > 6} == {77.0}
    assert "weight: 77.0" in (tmp_path / "tiny" / "config.yaml").read_text()
    assert "weight: 77.0" not in (tmp_path / "tiny" / "config.1.yaml").read_text()


def test_last_with_nothing_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, "--ckpt_path=last")
    assert caught.value.code == 1
    assert "there is no run named 'tiny'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def values(folder: Path, name: str) -> list[tuple[int, float]]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return [(int(step), float(value)) for step, _, key, value in rows if key == name]


def resumed(runs: Path, *args: str) -> Path:
    main(["fit", "--config", str(CONF), "--runs", str(runs), "--trainer.max_epochs=1"])
    main(["fit", "--config", str(CONF), "--runs", str(runs), "--ckpt_path=last", "--trainer.max_epochs=3",
          "--trainer.log_every_n_steps=1", *args])  # fmt: skip
    return runs / "tiny"


def test_changed_learning_rates_and_decay_are_used(tmp_path: Path) -> None:
    folder = resumed(tmp_path, "--model.optimizer.init_args.lr=0.001", "--model.encoder_lr=0.1",
                     "--model.optimizer.init_args.weight_decay=0.3")  # fmt: skip
    assert {value for step, value in values(folder, "lr/heads") if step >= 6} == {0.001}
    assert {value for step, value in values(folder, "lr/encoder") if step >= 6} == {0.0001}
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.3}


def test_a_changed_learning_rate_is_used_under_a_schedule(tmp_path: Path) -> None:
    fixed = ["--model.scheduler.scheduler=WarmupCosine", "--model.scheduler.scheduler.init_args.total_steps=18",
             "--model.scheduler.interval=step", "--trainer.log_every_n_steps=1"]  # fmt: skip
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path / "one"), *fixed, "--trainer.max_epochs=3"])
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path / "two"), *fixed, "--trainer.max_epochs=1"])
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path / "two"), *fixed, "--trainer.max_epochs=3", "--ckpt_path=last",
          "--model.optimizer.init_args.lr=0.001"])  # fmt: skip
    one, two = (dict(values(tmp_path / name / "tiny", "lr/heads")) for name in ("one", "two"))
    assert all(two[step] == pytest.approx(rate / (10 if step >= 6 else 1)) for step, rate in one.items())


def test_changed_importance_and_exponent_are_used(tmp_path: Path) -> None:
    folder = resumed(tmp_path / "fixed", "--model.weighting=Fixed", "--model.tasks.level.init_args.weight=98")
    weights = [dict(values(folder, f"weight/{task}"))[17] for task in ("color", "level", "mask")]
    assert weights == pytest.approx([0.01, 0.98, 0.01])


def test_a_run_that_max_steps_ended_in_mid_epoch_goes_on_with_its_samples(tmp_path: Path) -> None:
    args = ["--trainer.max_epochs=-1", "--model.scheduler=null", "--trainer.log_every_n_steps=1"]
    fit(tmp_path / "whole", *args, "--trainer.max_steps=15")
    for steps in (4, 6, 12, 15):
        resume = ["--ckpt_path=last"] if steps > 4 else []
        fit(tmp_path / "cut", *args, f"--trainer.max_steps={steps}", *resume)
    assert_same(tmp_path / "whole/tiny", tmp_path / "cut/tiny")


SCHEDULE = "--model.scheduler.scheduler"
OPTIM = f"{SCHEDULE}=torch.optim.lr_scheduler"


@pytest.mark.parametrize(
    ("common", "before", "after"),
    [
        pytest.param(
            [f"{SCHEDULE}=WarmupCosine", f"{SCHEDULE}.init_args.warmup=0.25"], [], [], id="longer", marks=pytest.mark.slow
        ),
        pytest.param(
            [f"{OPTIM}.CosineAnnealingLR"],
            [f"{SCHEDULE}.init_args.T_max=2"],
            [f"{SCHEDULE}.init_args.T_max=6"],
            id="cosine",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [f"{OPTIM}.OneCycleLR", f"{SCHEDULE}.init_args.max_lr=0.01"],
            [f"{SCHEDULE}.init_args.total_steps=3"],
            [f"{SCHEDULE}.init_args.total_steps=6"],
            id="one cycle",
        ),
        pytest.param(
            [f"{OPTIM}.MultiStepLR"],
            [f"{SCHEDULE}.init_args.milestones=[3]"],
            [f"{SCHEDULE}.init_args.milestones=[4]"],
            id="steps",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [f"{OPTIM}.LinearLR", f"{SCHEDULE}.init_args.total_iters=1"],
            [f"{SCHEDULE}.init_args.start_factor=0.5"],
            [f"{SCHEDULE}.init_args.start_factor=0.1"],
            id="linear",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [f"{OPTIM}.StepLR", f"{SCHEDULE}.init_args.step_size=1", f"{SCHEDULE}.init_args.gamma=0.5"],
            ["--model.heads_lr=0"],
            ["--model.heads_lr=1"],
            id="multiplier",
        ),
    ],
)
def test_a_changed_schedule_goes_on_as_if_it_had_always_been(
    tmp_path: Path, common: list[str], before: list[str], after: list[str]
) -> None:
    common = ["fit", "--config", str(CONF), *common, "--model.scheduler.interval=epoch", "--trainer.log_every_n_steps=6"]
    main([*common, *after, "--runs", str(tmp_path / "whole"), "--trainer.max_epochs=5"])
    main([*common, *before, "--runs", str(tmp_path / "cut"), "--trainer.max_epochs=2"])
    main([*common, *after, "--runs", str(tmp_path / "cut"), "--trainer.max_epochs=5", "--ckpt_path=last"])
    rates = [
        {step: rate for step, rate in values(tmp_path / name / "tiny", "lr/heads") if step >= 12} for name in ("whole", "cut")
    ]
    assert len(rates[0]) >= 3
    assert rates[1] == pytest.approx(rates[0])


def test_validation_by_the_clock_hinders_no_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_steps=9", "--trainer.val_check_interval=00:01:00:00", "--checkpoint.every_n_steps=null")
    assert torch.load(tmp_path / "tiny/checkpoints/last.ckpt", weights_only=True)["global_step"] == 9


class Saves(Callback):
    """Notes after how many batches of its epoch last.ckpt was written."""

    seen: ClassVar[list[int]] = []

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.seen.append(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"])


def test_an_early_stop_that_must_wait_saves_at_epoch_ends_alone(tmp_path: Path) -> None:
    Saves.seen.clear()
    stopping = "{class_path: EarlyStopping, init_args: {monitor: val/loss, mode: max, patience: 1}}"
    fit(tmp_path, "--trainer.min_epochs=4", "--trainer.max_epochs=5", "--trainer.accumulate_grad_batches=4",
        "--model.scheduler=null", "--checkpoint.every_n_steps=null", f"--trainer.callbacks+={stopping}",
        "--trainer.callbacks+=tests.test_resume.Saves")  # fmt: skip
    assert set(Saves.seen) == {6}
