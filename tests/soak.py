"""A callback that measures what a run holds: memory, open files, threads, processes, objects and the files it writes."""

import gc
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback


class Held(NamedTuple):
    """What the process and its workers hold at one moment.

    Attributes:
        step: optimizer steps done.
        memory: bytes of the process, resident or swapped out; not those of files, which come and go as the machine has room.
        workers: the same of its children.
        files: open file descriptors.
        threads: of the process.
        children: processes.
        objects: that the garbage collector knows.
        written: bytes by file of the run folder.
    """

    step: int
    memory: int
    workers: int
    files: int
    threads: int
    children: int
    objects: int
    written: dict[str, int]


def _memory(process: int | str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem", "VmSwap")))


def _children() -> Iterator[int]:
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if int(file.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(file.parent.name)


def hold(step: int, folder: Path) -> Held:
    """Look at the present process.

    Args:
        step: to note.
        folder: whose files are measured.
    """
    gc.collect()
    children = list(_children())
    return Held(
        step,
        _memory("self"),
        sum(map(_memory, children)),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        len(children),
        len(gc.get_objects()),
        {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()},
    )


class Meter(Callback):
    """Appends what is held to a file of JSON lines.

    Args:
        out: the file.
        every: steps between two looks.
    """

    def __init__(self, out: str, every: int) -> None:
        self.out, self.every, self.last = Path(out), every, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step >= self.last + self.every:
            self.last = trainer.global_step
            with self.out.open("a") as file:
                file.write(json.dumps(hold(trainer.global_step, Path(trainer.default_root_dir))._asdict()) + "\n")


def read(path: Path) -> list[Held]:
    """What a meter wrote."""
    return [Held(**json.loads(line)) for line in path.read_text().splitlines()]
