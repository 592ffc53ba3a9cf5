"""Two processes (gloo, one thread each) against one at the same global batch, and what they send each other in a step.

    python experiments/ddp_scaling/run.py

Runs `fit` as a user does, each setting in processes of its own, in turns. `two, not together` are two runs of half the batch at
the same time that know nothing of each other: what two processes cost each other without a message. One more run of each method
counts the messages where torch hands them to the network, DistributedDataParallel's and Lightning's as well.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl

ROOT = Path(__file__).parents[2]
FEATURES = "--model.engine.gradients=features"
METHODS = {
    "Equal": ["--model.weighting=Equal"],
    "UPGrad": ["--model.weighting=UPGrad"],
    "UPGrad at features": ["--model.weighting=UPGrad", FEATURES],
}


class Setting(NamedTuple):
    """How the work is split.

    Attributes:
        processes: of one run.
        threads: of each.
        runs: at the same time.
    """

    processes: int
    threads: int
    runs: int


SETTINGS = {
    "one, 1 thread": Setting(1, 1, 1),
    "one, 2 threads": Setting(1, 2, 1),
    "two, not together": Setting(1, 1, 2),
    "two": Setting(2, 1, 1),
}


class Pace(pl.Callback):
    """Writes the seconds of a step, from the third batch's start on.

    Args:
        out: the file.
    """

    def __init__(self, out: str) -> None:
        self.out, self.start = Path(out), 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch and trainer.is_global_zero:
            self.out.write_text(str((time.perf_counter() - self.start) / (batch_idx - 1)))


def start(method: str, setting: Setting, options: Any, folder: Path, callback: Sequence[str]) -> subprocess.Popen[bytes]:
    rows = options.batch // (setting.processes * setting.runs)
    command = [sys.executable, "-m", "mtl_lightning", "fit", "--config", str(ROOT / "configs/scenes.yaml"), *METHODS[method]]
    command += [f"--runs={folder}", f"--model.encoder={options.encoder}", f"--data.init_args.batch_size={rows}"]
    command += [f"--data.init_args.train_size={options.steps * rows * setting.processes}", "--data.init_args.num_workers=0"]
    command += ["--trainer.accelerator=cpu", f"--trainer.devices={setting.processes}", "--trainer.limit_val_batches=0"]
    command += ["--trainer.max_epochs=1", *callback]
    if setting.processes > 1:
        command += ["--trainer.strategy=ddp"]
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = os.environ | {"OMP_NUM_THREADS": str(setting.threads), "PYTHONPATH": paths}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)


def wait(processes: Sequence[subprocess.Popen[bytes]], folders: Sequence[Path]) -> None:
    for process, folder in zip(processes, folders, strict=True):
        if process.wait():
            raise SystemExit((folder / "log").read_text())


def seconds(method: str, setting: Setting, options: Any) -> float:
    """Of a step of the global batch."""
    with tempfile.TemporaryDirectory() as top:
        folders = [Path(top) / str(number) for number in range(setting.runs)]
        processes = []
        for folder in folders:
            folder.mkdir()
            callback = ["--trainer.callbacks+=run.Pace", f"--trainer.callbacks.out={folder / 'pace'}"]
            processes.append(start(method, setting, options, folder, callback))
        wait(processes, folders)
        return statistics.mean(float((folder / "pace").read_text()) for folder in folders)


def sent(method: str, options: Any) -> list[tuple[str, int, str]]:
    """The messages of a step of two processes."""
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        callback = ["--trainer.callbacks+=tests.messages.CountMessages", f"--trainer.callbacks.out={folder / 'sent'}"]
        wait([start(method, SETTINGS["two"], options, folder, callback)], [folder])
        step: list[tuple[str, int, str]] = json.loads((folder / "sent").read_text().splitlines()[3])
        return step


def scaling(options: Any) -> list[str]:
    times: dict[tuple[str, str], list[float]] = {}
    cases = [(method, name) for method in options.methods for name in SETTINGS]
    for turn in range(options.rounds):
        for method, name in cases[turn % len(cases) :] + cases[: turn % len(cases)]:
            times.setdefault((method, name), []).append(seconds(method, SETTINGS[name], options))
    lines = [
        "| method | processes | images/s | times as fast as one with 1 thread: median (lowest … highest) |",
        "|---|---|---|---|",
    ]
    for method, name in cases:
        values = times[method, name]
        ratios = [one / value for one, value in zip(times[method, "one, 1 thread"], values, strict=True)]
        told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        lines.append(f"| {method} | {name} | {options.batch / statistics.median(values):.1f} | {told} |")
    return lines


def volume(options: Any) -> list[str]:
    lines = ["| method | messages a step | numbers of each (floating point) | beside them |", "|---|---|---|---|"]
    for method in options.methods:
        step = sent(method, options)
        numbers = " + ".join(f"{size:,}" for _, size, kind in step if kind.startswith("float"))
        flags = " + ".join(str(size) for _, size, kind in step if not kind.startswith("float"))
        lines.append(f"| {method} | {len(step)} | {numbers} | {flags} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="ResNet")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=32, help="rows of all processes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="0 counts messages alone")
    options = parser.parse_args()
    print("\n".join(volume(options)))
    if options.rounds:
        print("\n".join(scaling(options)))


if __name__ == "__main__":
    main()
