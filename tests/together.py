"""Callbacks that make one of several processes fail."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback

from mtl_lightning.errors import DataError


class FailOn(Callback):
    """Fail on one process when a number of optimizer steps is done.

    Args:
        rank: which process.
        how: ``data`` an error for people, ``memory`` one of torch, ``kill`` the process ends without a word.
        step: when; -1 as the run is set up.
    """

    def __init__(self, rank: int, how: str, step: int = 2) -> None:
        self.rank, self.how, self.step = rank, how, step

    def _fail(self, trainer: Any) -> None:
        if trainer.global_rank == self.rank:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("picture 17 is broken") if self.how == "data" else RuntimeError("out of memory, as it were")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.step < 0:
            self._fail(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self._fail(trainer)
