"""The command line in a process of its own that writes down what it does, and can be told to kill itself at a moment of that."""

import hashlib
import io
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure

from mtl_lightning.callbacks.metrics_csv import MetricsCSV
from mtl_lightning.main import main


class Moment(NamedTuple):
    """When a process kills itself.

    Attributes:
        name: what it has just noted.
        count: the how-manieth time.
    """

    name: str
    count: int = 1


class Journal:
    """What a process does, a line each, each written at once: kills lose none.

    Args:
        file: is appended to.
        moment: when to kill; None never does.
    """

    def __init__(self, file: Path, moment: Moment | None) -> None:
        self.moment = moment
        self._seen = 0
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.note("started")

    def write(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())

    def now(self, name: str) -> bool:
        """Note something; whether it is the moment."""
        self.write(f"@{name}\t{time.monotonic():.3f}")
        if self.moment is None or name != self.moment.name:
            return False
        self._seen += 1
        return self._seen == self.moment.count

    def note(self, name: str) -> None:
        """Note something, and kill the process if it is the moment."""
        if self.now(name):
            kill()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


journal: Journal | None = None


def note(name: str) -> None:
    assert journal is not None
    journal.note(name)


class Watch(Callback):
    """Notes the stations of a run, and the samples of each batch with a hash of the pixels that the network sees."""

    def on_sanity_check_start(self, *_: Any) -> None:
        note("sanity check")

    def on_train_start(self, *_: Any) -> None:
        note("training")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert journal is not None
        pixels = hashlib.sha256(batch.inputs["image"].contiguous().numpy().tobytes()).hexdigest()
        journal.write(f"{trainer.current_epoch}\t{batch_idx}\t{' '.join(batch.ids)}\t{pixels}")
        note("forward")

    def on_before_backward(self, *_: Any) -> None:
        note("backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        note("optimizer step")

    def on_train_batch_end(self, *_: Any) -> None:
        note("batch ended")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            note("validation" if trainer.state.fn == "fit" else "final validation")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            note("validated" if trainer.state.fn == "fit" else "finally validated")

    def on_train_epoch_end(self, *_: Any) -> None:
        note("epoch ended")


def run(args: list[str], file: Path, out: Path, moment: Moment | None, draw: bool) -> None:
    """What a process does from its start to its end.

    Args:
        args: of the command line.
        file: for the journal.
        out: for what it prints.
        moment: when it kills itself.
        draw: whether pictures are drawn; files of their names are there in any case.
    """
    global journal
    os.setsid()
    # The process that forked this one would have its data workers import everything anew: seconds each.
    multiprocessing.set_start_method(None, force=True)
    with out.open("a") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    torch.set_num_threads(1)
    journal = Journal(file, moment)
    _watch_files(draw)
    main(args)
    sys.stdout.flush()


def _watch_files(draw: bool) -> None:
    save, replace, log_metrics = torch.save, os.replace, MetricsCSV.log_metrics

    def watched_save(what: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        assert journal is not None
        if journal.now("half a checkpoint written"):
            whole = io.BytesIO()
            save(what, whole, *args, **kwargs)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            kill()
        save(what, file, *args, **kwargs)

    def watched_replace(source: Any, target: Any) -> None:
        note(f"{Path(target).name} written, not renamed")
        replace(source, target)
        note(f"{Path(target).name} renamed")

    def watched_log(self: MetricsCSV, metrics: dict[str, float], step: int | None = None) -> None:
        assert journal is not None
        if journal.now("half a line of metrics.csv"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{step},0,{next(iter(metrics))},0.1")
                file.flush()
                kill()
        log_metrics(self, metrics, step)
        note("lines of metrics.csv")

    torch.save, os.replace, MetricsCSV.log_metrics = watched_save, watched_replace, watched_log  # type: ignore[assignment, method-assign]
    if not draw:
        Figure.savefig = lambda figure, path, **options: Path(path).touch()  # type: ignore[method-assign, assignment]
