"""What a checkpoint costs: how long a save holds the training up, and how long checking and loading one takes.

    python experiments/checkpoint_cost/measure.py

ResNet-50 with AdamW and three small heads. ``fit`` as a user calls it saves best.ckpt after each better epoch, and after
every epoch last.ckpt, whose predecessor becomes previous.ckpt; an epoch is one tiny step here. A save is timed around the
trainer's own call, in which the training stands still.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from mtl_lightning.checkpoint import check_whole, load_checkpoint
from mtl_lightning.main import main as command_line

CONFIG = Path(__file__).parents[2] / "configs" / "scenes.yaml"
DATA = "--data.init_args"
TIMES: dict[str, list[float]] = {}


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which notes under a name, with the file saved, how long it took."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = function(*args, **kwargs)
        label = f"{name} {Path(args[1]).name}" if len(args) > 1 else name
        TIMES.setdefault(label, []).append(time.perf_counter() - start)
        return found

    return wrapper


def row(what: str, values: Sequence[float]) -> str:
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return f"| {what} | {len(values)} | {middle:.2f} ({first:.2f} … {third:.2f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="On the disk to measure; a temporary one otherwise.")
    options = parser.parse_args()
    Trainer.save_checkpoint = timed("save", Trainer.save_checkpoint)  # type: ignore[method-assign]
    os.fsync = timed("of a save: sync", os.fsync)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        command_line(
            [
                *("fit", "--config", str(CONFIG), "--runs", folder, '--model.only=["shape", "present", "count"]'),
                *("--model.encoder=ResNet", "--model.encoder.init_args.name=resnet50", "--checkpoint.monitor=train/loss"),
                *(f"{DATA}.num_workers=0", f"{DATA}.cache=false", f"{DATA}.train_size=4", f"{DATA}.batch_size=4"),
                *(f"{DATA}.val_size=4", f"{DATA}.hidden=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
                *(f"--trainer.max_epochs={options.saves}", "--trainer.num_sanity_val_steps=0"),
            ]
        )
        file = Path(folder) / "scenes" / "checkpoints" / "last.ckpt"
        size = file.stat().st_size / 2**20
        weights = sum(value.numel() for value in torch.load(file)["state_dict"].values() if isinstance(value, torch.Tensor))
        for _ in range(options.saves):
            timed("check the sums of last.ckpt", check_whole)(file)
            timed("torch.load of last.ckpt", torch.load)(file)
            timed("check and load last.ckpt", load_checkpoint)(file)
    print(f"\n{weights / 1e6:.1f} M parameters and statistics, {size:.0f} MiB a checkpoint\n")
    print("| what | times | seconds: median (quartiles) |\n|---|---|---|")
    TIMES["of a save: sync"] = [value for value in TIMES["of a save: sync"] if value > 1e-3] or TIMES["of a save: sync"]
    for what, values in TIMES.items():
        print(row(what, values))


if __name__ == "__main__":
    main()
