"""What safety costs a training step: `fit` as configured by default, and with its parts switched off in turns, in one process.

    python experiments/safety_cost/run.py

Every epoch of one run is a variant: what is off is taken out when the epoch starts and put back when it ends, in an order that
moves on. A step's time runs from the second batch handed out to the last step done; a save of the checkpoint is timed apart.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

import mtl_lightning.data.loader
import mtl_lightning.gradients.engine
import mtl_lightning.objective
import mtl_lightning.training
from mtl_lightning.main import main as command_line

ROOT = Path(__file__).parents[2]
CALLBACKS = {
    "checkpoints": ("LastCheckpoint", "BestCheckpoint"),
    "other callbacks": ("Resume", "DataSpeed", "EpochLines", "TaskBar", "Tracking", "WatchSharing", "NetworkPage", "Report"),
}
PARTS = ("logging", *CALLBACKS, "bad numbers", "generators", "resumable loader")
VARIANTS: dict[str, tuple[str, ...]] = {"everything on": (), **{f"without {part}": (part,) for part in PARTS}, "all off": PARTS}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def unchecked() -> list[Any]:
    """Patches that let every number pass."""
    training: Any = mtl_lightning.training
    patches: list[Any] = [patch.object(mtl_lightning.objective.Losses, "not_finite", lambda losses: [])]
    for module in (training, mtl_lightning.gradients.engine):
        if hasattr(module, "all_finite"):
            patches.append(patch.object(module, "all_finite", lambda tensors: True))
    if hasattr(training, "Buffers"):
        patches += [patch.object(training.Buffers, name, lambda *_, **__: []) for name in ("keep", "numbers")]
    return patches


class NoSeed:
    """In place of the generators' states that are set for a sample and set back."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Switch(pl.Callback):
    """Takes parts out for an epoch, and keeps the times.

    Args:
        clock: of :data:`CLOCKS`.
    """

    running: ClassVar["Switch"]

    def __init__(self, clock: str = "wall") -> None:
        Switch.running, self.now = self, CLOCKS[clock]
        self.times: dict[str, list[float]] = {name: [] for name in VARIANTS}
        self.saves: list[float] = []
        self.start = 0.0
        self.stack: ExitStack | None = None

    def variant(self, epoch: int) -> str:
        names, turn = list(VARIANTS), (epoch // len(VARIANTS)) % len(VARIANTS)
        return (names[turn:] + names[:turn])[epoch % len(VARIANTS)]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.switch(trainer, VARIANTS[self.variant(trainer.current_epoch)])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.start = self.now()

    def switch(self, trainer: pl.Trainer, off: Sequence[str]) -> None:
        self.stack, everything, loggers = ExitStack(), trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
        gone = {name for part in off for name in CALLBACKS.get(part, ())}
        trainer.callbacks = [callback for callback in everything if type(callback).__name__ not in gone]  # type: ignore[attr-defined]
        self.stack.callback(setattr, trainer, "callbacks", everything)
        if "logging" in off:
            trainer.loggers = []
            self.stack.callback(setattr, trainer, "loggers", loggers)
        for one in unchecked() if "bad numbers" in off else []:
            self.stack.enter_context(one)
        if "generators" in off:
            self.stack.enter_context(patch.object(mtl_lightning.data.loader, "sample_randomness", NoSeed))
        if "resumable loader" in off:
            self.stack.enter_context(patch.object(mtl_lightning.data.loader.ResumableLoader, "__iter__", DataLoader.__iter__))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch and self.stack is not None:
            seconds = (self.now() - self.start) / batch_idx
            self.stack.close()
            if trainer.current_epoch >= len(VARIANTS):  # the first round warms up
                self.times[self.variant(trainer.current_epoch)].append(seconds)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch % len(VARIANTS) == 0:
            start = time.perf_counter()
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "timed.ckpt")
            self.saves.append(time.perf_counter() - start)


def keep(names: Sequence[str]) -> None:
    """Leave the other variants out."""
    for name in set(VARIANTS) - set(names):
        del VARIANTS[name]


def arguments(encoder: str, steps: int, rounds: int, clock: str, runs: str) -> list[str]:
    rows, epochs = 16 * steps, len(VARIANTS) * (rounds + 1)
    found = ["fit", "--config", str(ROOT / "configs/scenes.yaml"), "--runs", runs, f"--model.encoder={encoder}"]
    found += [f"--data.init_args.train_size={rows}", "--data.init_args.batch_size=16", "--data.init_args.val_size=16"]
    found += ["--data.init_args.num_workers=0", "--trainer.limit_val_batches=0", f"--trainer.max_epochs={epochs}"]
    return [*found, f"--trainer.callbacks+={__name__}.Switch", f"--trainer.callbacks.clock={clock}", "--trainer.accelerator=cpu"]


def quartiles(values: Sequence[float], digits: int = 3) -> str:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return f"{statistics.median(ordered):.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def measure(encoder: str, steps: int, rounds: int, clock: str) -> list[str]:
    with tempfile.TemporaryDirectory() as runs:
        command_line(arguments(encoder, steps, rounds, clock, runs))
    switch, lines = Switch.running, []
    everything = switch.times["everything on"]
    for name, times in switch.times.items():
        ratio = "" if name == "everything on" else quartiles([on / off for on, off in zip(everything, times, strict=True)])
        lines.append(f"| {encoder} | {name} | {1000 * statistics.median(times):.2f} | {ratio} |")
    save = 1000 * statistics.median(switch.saves)
    return [*lines, f"| {encoder} | a save of last.ckpt, by the clock | {save:.2f} | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["SmallCNN", "ResNet"])
    parser.add_argument("--steps", type=int, nargs="+", default=[40, 12], help="of an epoch, for each encoder")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use as well")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="beside everything on")
    options = parser.parse_args()
    keep(["everything on", *options.variants])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rows = []
    for encoder, steps in zip(options.encoders, options.steps, strict=True):
        rows += measure(encoder, steps, options.rounds, options.clock)
    print("| encoder | | ms a step | everything on takes so many times as long: median (quartiles) |")
    print("|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    # The configuration names the classes of this file by its module.
    sys.path.insert(0, str(Path(__file__).parent))
    import run as this

    this.main()
