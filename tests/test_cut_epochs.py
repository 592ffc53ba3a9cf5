"""What goes on in the middle of an epoch: batches, best checkpoints, errors."""

from pathlib import Path
from typing import Any

import pytest
import torch

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
