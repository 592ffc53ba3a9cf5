"""Callbacks that end a run in the middle."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback


class Stopped(Exception):
    """The run was cut."""


class StopAt(Callback):
    """Raise, or kill the process, when a number of optimizer steps is done (and what follows that batch is not)."""

    def __init__(self, step: int, kill: bool = False) -> None:
        self.step = step
        self.kill = kill

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Stopped


class SignalAt(Callback):
    """Send the process of a rank a signal when a number of optimizer steps is done."""

    def __init__(self, step: int, name: str, rank: int = 0) -> None:
        self.step, self.number, self.rank = step, signal.Signals[name], rank

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


class SignalInValidation(Callback):
    """Send the process a signal at the first validation batch of ``fit``, or of the ``validate`` after it."""

    def __init__(self, name: str, stage: str = "fit") -> None:
        self.number: signal.Signals | None = signal.Signals[name]
        self.stage = stage

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if self.number is not None and trainer.state.fn == self.stage:
            os.kill(os.getpid(), self.number)
            self.number = None


class SignalInTest(Callback):
    """Send the process SLURM's signal in ``test``."""

    def on_test_batch_start(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)


class SignalInSetup(Callback):
    """Send the process Ctrl-C before anything is trained."""

    def setup(self, *_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
