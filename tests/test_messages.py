"""What two processes send each other in a step of a run, Lightning's messages and DistributedDataParallel's counted as well."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.messages import counting, flags, numbers, steps

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
TASKS = 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "ours"),
    [
        ([], "loss"),
        (["--model.weighting=UW"], "learnt"),
        (["--model.weighting=UPGrad"], "parameters"),
        (["--model.weighting=UPGrad", "--model.engine.gradients=features"], "features"),
    ],
)
def test_nothing_is_sent_beside_what_must_be(tmp_path: Path, more: list[str], ours: str) -> None:
    command = [sys.executable, "-m", "mtl_lightning", "fit", "--config", str(CONF), "--runs", str(tmp_path)]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1", "--data.init_args.batch_size=4"]
    command += ["--data.init_args.hidden={}", "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0"]
    command += counting(tmp_path / "sent")
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=400, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    state = torch.load(tmp_path / "tiny/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    network = {key: value for key, value in state.items() if key.startswith("model.") and value.is_floating_point()}
    buffers = {key for key in network if "running" in key}
    shared = sum(value.numel() for key, value in network.items() if key not in buffers and ".architecture." in key)
    own = sum(value.numel() for key, value in network.items() if key not in buffers and ".heads." in key)
    # The mean and deviation of the three colours are in no checkpoint.
    ddp_buffers = 6 + sum(network[key].numel() for key in buffers)
    expected = {
        "loss": [3 * TASKS + 1, shared + own],
        "learnt": [3 * TASKS + 1, shared + own + TASKS],
        "parameters": [3 * TASKS + 1, TASKS * shared, TASKS * TASKS, TASKS, own],
        "features": [3 * TASKS + 1, TASKS * TASKS, TASKS, shared, own],
    }
    seen = steps(tmp_path / "sent")
    assert len(seen) == 4
    for step in seen:
        assert numbers(step) == [ddp_buffers, *expected[ours]]
    usual = [step for step in seen if len(flags(step)) <= 3 and sum(flags(step)) <= 7]
    # Once, DistributedDataParallel tells all processes in which order gradients come.
    assert len(usual) >= len(seen) - 1 and all(len(flags(step)) <= 5 for step in seen)
