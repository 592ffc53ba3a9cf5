"""What goes on in the middle of an epoch: batches, best checkpoints, errors."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback

from mtl_lightning.data.loader import EpochSampler
from mtl_lightning.main import main
from tests.killer import Stopped

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
QUICK = ["--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false", "--model.only=[color]"]


def fit(runs: Path, *args: str) -> Path:
    main(["fit", "--config", str(CONF), "--runs", str(runs), *QUICK, *args])
    return runs / "tiny"


def cut(runs: Path, step: int, *args: str) -> Path:
    with pytest.raises(Stopped):
        fit(runs, *args, f"--trainer.callbacks+={{class_path: tests.killer.StopAt, init_args: {{step: {step}}}}}")
    return runs / "tiny"


def saved(folder: Path, name: str = "last") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
    return found


def values(folder: Path, name: str) -> dict[int, float]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return {int(step): float(value) for step, _, key, value in rows if key == name}


def test_other_batches_are_refused_in_mid_epoch_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = cut(tmp_path, 4, "--checkpoint.every_n_steps=2")
    before = (folder / "metrics.csv").read_bytes()
    for size in (4, 16):
        with pytest.raises(SystemExit) as caught:
            fit(tmp_path, "--ckpt_path=last", f"--data.init_args.batch_size={size}")
        error = capsys.readouterr().err
        assert caught.value.code == 1
        assert f"data.init_args.batch_size is {size} on 1 process" in error and "after 32 rows in batches of 8" in error
        assert "batch size times processes is 8" in error and "trainer.max_epochs=1" in error
        # A checkpoint of before loaders told the size of their batches.
        state = saved(folder)
        state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0].pop("batch", None)
        torch.save(state, folder / "checkpoints/last.ckpt")
    assert (folder / "metrics.csv").read_bytes() == before
    # As the message advises.
    fit(tmp_path, "--ckpt_path=last", "--trainer.max_epochs=1")
    fit(tmp_path, "--ckpt_path=last", "--data.init_args.batch_size=16")
    assert saved(folder)["global_step"] == 6 + 3


class Stop(Callback):
    """Stops in the middle of the second epoch, as ``trainer.max_time`` does."""

    after = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop |= trainer.current_epoch == 1 and batch_idx == self.after


@pytest.mark.parametrize(("batch", "accumulate", "after"), [(8, 1, 2), (4, 2, 4)], ids=["a step", "within a step"])
def test_last_and_best_of_an_epoch_that_was_stopped_are_of_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, accumulate: int, after: int
) -> None:
    """Where ``last.ckpt`` did not know of that best, a worse epoch of the run that goes on would take its place."""
    monkeypatch.setattr(Stop, "after", after)
    folder = fit(tmp_path, "--checkpoint.monitor=val/loss", "--trainer.callbacks+=tests.test_cut_epochs.Stop",
                 f"--data.init_args.batch_size={batch}", f"--trainer.accumulate_grad_batches={accumulate}")  # fmt: skip
    last, best = saved(folder), saved(folder, "best")
    assert last["global_step"] == best["global_step"] == 9
    [state] = [state for state in last["callbacks"].values() if "best_model_score" in state]
    assert float(state["best_model_score"]) == pytest.approx(values(folder, "val/loss")[8])
    # A run that starts from the best one goes on in mid-epoch, too.
    epochs = [found["loops"]["fit_loop"]["epoch_progress"]["current"] for found in (last, best)]
    assert epochs[0] == epochs[1] and epochs[0]["started"] == epochs[0]["processed"] + 1


class Rows(Callback):
    """Notes what is trained on."""

    seen: ClassVar[list[list[str]]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(list(batch.ids))


@pytest.mark.parametrize("start", ["last", pytest.param("best", marks=pytest.mark.slow)])
def test_part_of_an_epoch_is_an_epoch(tmp_path: Path, start: str) -> None:
    """Every epoch takes the first rows of its own order, however the run was cut up, also where max_steps is given."""
    part = ["--trainer.limit_train_batches=3", "--trainer.max_epochs=3", "--trainer.max_steps=100",
            "--trainer.callbacks+=tests.test_cut_epochs.Rows"]  # fmt: skip
    Rows.seen.clear()
    whole = fit(tmp_path / "whole", *part)
    expected, Rows.seen[:] = list(Rows.seen), []
    folder = cut(tmp_path / "cut", 3, *part)
    assert Rows.seen.pop() == expected[3]
    fit(tmp_path / "cut", *part, f"--ckpt_path={folder}/checkpoints/best.ckpt" if start == "best" else "--ckpt_path=last")
    assert Rows.seen == expected
    folder = folder.with_name("tiny-2") if start == "best" else folder
    assert (folder / "summary.json").read_text() == (whole / "summary.json").read_text()


def test_a_validation_without_a_label_ends_no_run(tmp_path: Path) -> None:
    stopping = "{class_path: EarlyStopping, init_args: {monitor: val/loss}}"
    with pytest.warns(UserWarning, match=r"no label that counts for val/score: no best\.ckpt") as warned:
        folder = fit(tmp_path, "--data.init_args.eval_rows=100", "--trainer.limit_val_batches=1",
                     "--data.init_args.hidden_eval={color: 0.97}", f"--trainer.callbacks+={stopping}")  # fmt: skip
    assert sum("early stopping does not look at it" in str(warning.message) for warning in warned) == 1
    assert saved(folder)["global_step"] == 12 and (folder / "finished").exists()
    assert not (folder / "checkpoints/best.ckpt").exists()


def test_the_best_epoch_of_the_training_loss(tmp_path: Path) -> None:
    folder = fit(tmp_path, "--checkpoint.monitor=train/loss", "--trainer.val_check_interval=3")
    losses = values(folder, "train/loss")
    assert saved(folder, "best")["global_step"] == 1 + min(losses, key=losses.__getitem__)


@pytest.mark.slow
def test_fit_refuses_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saving = f"{{class_path: ModelCheckpoint, init_args: {{dirpath: {tmp_path}/w, filename: w, save_weights_only: true}}}}"
    fit(tmp_path, "--trainer.max_steps=6", f"--trainer.callbacks+={saving}")
    path = tmp_path / "w/w.ckpt"
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, f"--ckpt_path={path}")
    error = capsys.readouterr().err
    assert caught.value.code == 1
    assert f"error: {path}: holds weights without the state of training (no optimizer_states" in error
    assert "validate, test and predict can use this one" in error and not (tmp_path / "tiny-2").exists()
    main(["validate", "--config", str(CONF), "--runs", str(tmp_path), *QUICK, f"--ckpt_path={path}"])
    # As the message advises.
    fit(tmp_path, "--trainer.max_steps=1", "--name=new", f"--model.encoder.init_args.weights={path}")


def test_an_error_waits_for_the_validation_that_is_due(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = [pick.row for pick in EpochSampler(list(range(48)), shuffle=True, seed=0)]  # type: ignore[arg-type]
    args = ["--data=tests.spoilt.SpoiltDataModule", "--data.init_args.num_workers=0", "--data.init_args.batch_size=8",
            f"--data.init_args.spoil={{train-{order[9]}: image}}", "--data.init_args.seed=0", "--trainer.val_check_interval=2",
            "--trainer.max_epochs=1"]  # fmt: skip
    with pytest.raises(SystemExit):
        fit(tmp_path, *args, "--model.bad_numbers.policy=raise")
    assert "bad numbers in step 1 of epoch 0" in capsys.readouterr().err
    folder = fit(tmp_path, *args, "--model.bad_numbers.policy=raise", "--ckpt_path=last")
    whole = fit(tmp_path, *args, "--name=whole").with_name("whole")
    assert values(folder, "val/loss") == values(whole, "val/loss")
    assert list(values(whole, "val/loss")) == [1, 3, 5]
