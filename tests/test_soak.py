"""Long runs hold no more at their end than after their beginning, and write no more than they say."""

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest

from mtl_lightning.main import main
from tests.soak import Held, read

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
SMALL = ["--model.encoder.init_args.widths=[4]", "--data.init_args.sizes=[8, 8]", "--data.init_args.hidden={mask: 0.5}"]
MMOE = ["--model.architecture=MMoE", "--model.architecture.init_args.experts=2", "--model.architecture.init_args.shared=0"]
LONG = [*MMOE, "--model.weighting=UPGrad", "--data.init_args.rows=4000", "--trainer.max_epochs=40"]
SAVED = ["--trainer.val_check_interval=250", "--checkpoint.every_n_steps=100", "--trainer.log_every_n_steps=50"]
OFFLINE = ["--trainer.logger=WandbLogger", "--trainer.logger.offline=true", "--tracking.every_n_epochs=1"]


def arguments(folder: Path, every: int, more: Sequence[str]) -> list[str]:
    meter = ["--trainer.callbacks+=tests.soak.Meter", f"--trainer.callbacks.out={folder / 'held'}"]
    return ["fit", "--config", str(CONF), "--runs", str(folder), *SMALL, *meter, f"--trainer.callbacks.every={every}", *more]


def check(held: Sequence[Held], grows: Sequence[str] = ()) -> None:
    """Compare the last looks with those after a quarter of the run."""
    early, late = held[len(held) // 4 : len(held) // 2], held[-max(1, len(held) // 4) :]

    def rose(name: str) -> float:
        first, last = (median(getattr(look, name) for look in looks) for looks in (early, late))
        return last / max(1.0, first)

    assert rose("memory") < 1.02, [look.memory for look in held]
    # What W&B starts is no worker of ours, and 13 MB large.
    assert grows or rose("workers") < 1.02, [look.workers for look in held]
    # In three quarters of the run: an object that stays from every fifth step would be seen in 20,000.
    assert rose("objects") < 1.005, [look.objects for look in held]
    # Batches that are under way between processes are open files, now more and now fewer.
    assert rose("files") < 1.2, [look.files for look in held]
    for name in ("threads", "children"):
        assert max(getattr(look, name) for look in late) <= max(getattr(look, name) for look in early), name
    before, after = early[-1].written, late[-1].written
    for file in after:
        if file != "metrics.csv" and not file.startswith(tuple(grows)):
            assert after[file] <= 1.02 * before.get(file, 0), file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "looks", "grows", "more"),
    [
        (250, 79, (), [*LONG, *SAVED]),
        (50, 29, (), ["--model.weighting=UPGrad", "--data.init_args.rows=8", "--trainer.max_epochs=1500"]),
        (50, 39, (), ["--model.weighting=MoDo", "--data.init_args.num_workers=2", "--data.init_args.rows=64",
                      "--trainer.max_epochs=250", "--checkpoint.every_n_steps=5"]),
        (20, 14, ("wandb",), ["--model.weighting=UW", "--data.init_args.rows=16", "--trainer.max_epochs=150",
                              "--tracking.samples=2", *OFFLINE]),
    ],
    ids=["steps", "epochs", "workers", "tracking"],
)  # fmt: skip
def test_a_long_run_stays_as_it_is(every: int, looks: int, grows: tuple[str, ...], more: list[str], tmp_path: Path) -> None:
    if "wandb" in grows:
        pytest.importorskip("wandb")
    command = [sys.executable, "-m", "mtl_lightning", *arguments(tmp_path, every, more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    held = read(tmp_path / "held")
    assert len(held) == looks
    check(held, grows)


@pytest.mark.slow
def test_metrics_are_logged_as_often_as_told(tmp_path: Path, no_pictures: None) -> None:
    more = ["--data.init_args.rows=160", "--trainer.max_epochs=5", "--trainer.log_every_n_steps=10", "--model.weighting=UPGrad"]
    main(arguments(tmp_path, 10, [*more, "--trainer.val_check_interval=10", "--data.init_args.hidden={}"]))
    held = read(tmp_path / "held")
    assert len(held) == 9
    check(held)
    rows = [line.split(",") for line in (tmp_path / "tiny/metrics.csv").read_text().splitlines()[1:]]
    times = Counter(name for _, _, name, _ in rows)
    # 100 steps, 20 an epoch: the first step and every tenth, an epoch's losses once, a validation twice an epoch.
    assert times["step/color/loss"] == times["weight/mask"] == max(times.values()) == 11
    assert times["train/color/loss"] == 5 and times["val/score"] == 10
