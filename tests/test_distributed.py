"""Two processes on halves of each batch give what one process gives on the whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
EXACT = [
    "--model.encoder.init_args.norm=false",
    "--model.tasks.mask.init_args.head=UNet",
    "--model.tasks.mask.init_args.head.init_args.norm=none",
    "--model.optimizer=torch.optim.SGD",
    "--model.optimizer.init_args.lr=0.05",
    "--trainer.precision=64-true",
    "--trainer.log_every_n_steps=1",
    "--data.init_args.rows=45",  # the last batch is uneven
    "--data.init_args.hidden={color: 0.8, level: 0.3, mask: 0.9}",  # batches and ranks without a label
]


def run(runs: Path, batch: int, *args: str) -> Path:
    command = [sys.executable, "-m", "mtl_lightning", "fit", "--config", str(CONF), "--runs", str(runs), *EXACT]
    command += [f"--data.init_args.batch_size={batch}", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in runs.iterdir()] == ["tiny"]
    return runs / "tiny"


def numbers(folder: Path) -> dict[tuple[str, str], float]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert len({(step, name) for step, _, name, _ in rows}) == len(rows)
    return {(step, name): float(value) for step, _, name, value in rows}


@pytest.mark.parametrize(
    "more",
    [
        ["--model.weighting=UW"],
        pytest.param(["--model.weighting=RLW"], marks=pytest.mark.slow),
        ["--model.weighting=NashMTL", "--trainer.gradient_clip_val=0.5"],
        pytest.param(
            ["--model.weighting=IMTL", "--model.engine.gradients=features", "--model.engine.update_every=2"],
            marks=pytest.mark.slow,
        ),
        # The first half of an uneven batch is not the same rows on any number of processes.
        pytest.param(
            ["--model.weighting=FAMO", "--model.weighting.init_args.fraction=0.5", "--data.init_args.rows=48"],
            marks=pytest.mark.slow,
        ),
        pytest.param(["--model.weighting=MoDo", "--trainer.accumulate_grad_batches=2"], marks=pytest.mark.slow),
    ],
    ids=lambda more: " ".join(more),
)
def test_two_processes_equal_one(tmp_path: Path, more: list[str]) -> None:
    one = run(tmp_path / "one", 8, *more)
    two = run(tmp_path / "two", 4, *more, "--trainer.devices=2", "--trainer.strategy=ddp")
    mine, theirs = (torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for path in (one, two))
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert float((value - theirs[key]).abs().max()) < 1e-9, key
    first, second = numbers(one), numbers(two)
    assert first.keys() == second.keys()
    for key, value in first.items():
        # Losses and weights go through one float32 number on their way to the log.
        assert second[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    steps = {step for step, name in first if name == "weight/mask"}
    assert any(first[step, "weight/mask"] == 0 for step in steps), "no batch without a mask: the test shows nothing"
