"""A tiny data module whose workers die or hang at some row."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info

from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.tasks.base import Task
from tests.tiny import TinyDataModule, TinyDataset


def spring(trap: str) -> None:
    """Die or hang."""
    if trap == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif trap == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif trap == "exit":
        os._exit(3)
    elif trap == "leave":
        os._exit(0)
    elif trap == "pipe":
        Path(os.environ["TRAP_PIPE"]).read_bytes()  # nobody writes to it
    else:
        time.sleep(3600)


class TrapDataset(TinyDataset):
    """The rows, and what happens at one of them in a worker, when it was given so many rows before."""

    trap, row, after = "", 0, 0
    given = 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.given += 1
        if self.trap and get_worker_info() is not None and index == self.row and self.given > self.after:
            spring(self.trap)
        return super().__getitem__(index)


class TrapDataModule(TinyDataModule):
    """Args: what happens, in which split, at which row, and after how many rows in the same worker."""

    def __init__(self, trap: str, split: str = "train", row: int = 5, after: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trap, self.split, self.row, self.after = trap, split, row, after

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        found = super().datasets(tasks, splits)
        if isinstance(chosen := found.get(self.split), TinyDataset):
            chosen.__class__ = TrapDataset
            chosen.trap, chosen.row, chosen.after = self.trap, self.row, self.after  # type: ignore[attr-defined]
        return found
