"""What it means that a process which prepares batches died or does not answer: errors of ours in place of torch's."""

import multiprocessing
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import Any

from mtl_lightning.checks import at_least
from mtl_lightning.errors import DataError

WORKER_TIMEOUT = 300.0
"""Seconds that a batch may take in the workers: less than the ten minutes after which other processes of a run stop waiting."""
SHOWN = 32
"""Rows that a message lists."""
DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal|exited unexpectedly)(.*)", re.DOTALL)
RAISED = "Caught "
"""How torch begins an error that a worker raised, and did not die of."""
LATE = re.compile(r"DataLoader timed out after")
SLICE = 1.0
"""Seconds that torch waits for a batch before it looks whether the workers live. The signal of a death mostly tells it sooner,
but it may reach another thread, or be handled where nothing can be raised."""
GRACE = 5.0
"""Seconds in which a worker that broke a connection is seen to be dead, and those of a failed loader end by themselves."""
SAVED = "What was saved stays as it is: a fit goes on from there with --ckpt_path last"


def check_timeout(seconds: float) -> None:
    """Raise :class:`ConfigError` for what is no time."""
    at_least("data.init_args.worker_timeout", seconds, 0)


def worker_error(error: BaseException) -> DataError | None:
    """The error of ours for one of torch's about a dead worker; None for any other.

    torch raises that wherever the main process is at the time, not only where it waits for a batch.
    """
    died = DIED.search(str(error)) if isinstance(error, RuntimeError) else None
    return _dead(died[1], died[2].strip(" :.").split(".")[0]) if died is not None else None


def _dead(pids: str, details: str) -> DataError:
    what = f"a worker, a process that prepares batches (pid {pids}), died ({details.removeprefix('with ') or 'no exit code'})"
    if "Bus error" in details:
        why = "the shared memory is full (containers often have 64 MB); enlarge it, or lower data.init_args.num_workers"
    elif "Segmentation" in details or "Aborted" in details:
        why = "a library crashed, perhaps at a damaged file; with data.init_args.num_workers at 0 one sees at which"
    elif "Killed" in details:
        why = "most likely the memory was full; lower data.init_args.num_workers, batch_size, max_pixels or the cache"
    else:
        why = "with data.init_args.num_workers at 0 one sees the cause"
    return DataError(f"{what}: {why}. {SAVED}")


class Workers:
    """The processes of one loader, and what became of them.

    Args:
        timeout: seconds that a batch may take; 0 is for ever. The loader's own is a slice of it, see :func:`worker_options`.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._processes: list[BaseProcess] = []

    def watched(self, start: Callable[[], Iterator[Any]], rows: Callable[[], Sequence[str]]) -> Iterator[Any]:
        """The loader's batches.

        Args:
            start: gives them, and starts the processes unless they are there.
            rows: names the rows of the next batch.

        Raises:
            DataError: a worker died, or a batch took longer than the loader waits. All are ended after this and any other error.
        """
        before = multiprocessing.active_children()
        batches = start()
        self._processes += [process for process in multiprocessing.active_children() if process not in before]
        since = time.monotonic()
        while True:
            try:
                with self._alert():
                    batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if LATE.match(str(error)) and time.monotonic() - since < self.timeout:
                    continue
                with _quiet():
                    ours = self._explained(error, rows)
                self.end()
                if ours is None:
                    raise
                raise ours from error
            yield batch
            since = time.monotonic()

    @contextmanager
    def _alert(self) -> Iterator[None]:
        """Hear at once of a worker that dies.

        torch listens as well, but once in a process: at the end of a fit the trainer puts back the signal handlers of before it.
        A death in a later command would be noticed a slice later, and never by who waits for the rest of a dead worker's message.
        """
        deaf = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
        if not (deaf and self._processes):
            yield
            return
        signal.signal(signal.SIGCHLD, self._child_ended)
        try:
            self._child_ended()  # while nobody waited
            yield
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _child_ended(self, number: int = 0, frame: FrameType | None = None) -> None:
        if any(process.exitcode is not None for process in self._processes):
            raise ChildProcessError("a worker died")

    def _explained(self, error: Exception, rows: Callable[[], Sequence[str]]) -> DataError | None:
        if LATE.match(str(error)):
            return self._late(rows())
        if isinstance(error, RuntimeError) and not DIED.search(str(error)):
            return None
        if not self._processes or str(error).startswith(RAISED):
            return worker_error(error)
        # What a dying worker was sending breaks off, mostly before it is known to be dead.
        for _ in range(int(GRACE / 0.05)):
            if dead := [process for process in self._processes if process.exitcode is not None]:
                return _dead(", ".join(str(process.pid) for process in dead), _details(dead[0].exitcode or 0))
            time.sleep(0.05)
        return worker_error(error)

    def _late(self, rows: Sequence[str]) -> DataError:
        some = ", ".join(rows[:SHOWN]) + (", …" if len(rows) > SHOWN else "")
        which = f" of the rows {some}" if rows else ""
        return DataError(
            f"the batch{which} took longer than data.init_args.worker_timeout ({self.timeout:g} s): the storage of a file does "
            f"not answer, or the workers are too slow. Look at these files, or set it higher (0 waits for ever). {SAVED}"
        )

    def end(self) -> None:
        """End them all after an error: none is left waiting for a file, and the collector need not wait for them."""
        with _quiet():
            for stop in (BaseProcess.terminate, BaseProcess.kill):
                until = time.monotonic() + GRACE
                for process in self._processes:
                    if process.is_alive():
                        stop(process)
                for process in self._processes:
                    process.join(max(0.0, until - time.monotonic()))
        self._processes.clear()


class Flag:
    """An event that nobody waits for, and so needs no lock: one that a worker held when it was killed stays locked for ever."""

    def __init__(self) -> None:
        self._raised = RawValue("b", 0)

    def set(self) -> None:
        """Raise it."""
        self._raised.value = 1

    def is_set(self) -> bool:
        """Whether it was raised, in this process or another one."""
        return bool(self._raised.value)


def worker_options(number: int, timeout: float) -> dict[str, Any]:
    """What a loader that :class:`Workers` watches is made with.

    Args:
        number: of workers.
        timeout: seconds that a batch may take in them; 0 is for ever.
    """
    return {"num_workers": number} | ({"timeout": min(timeout, SLICE), "multiprocessing_context": _context()} if number else {})


def _context() -> BaseContext:
    """Workers are started as all processes of Python are, but a :class:`Flag` tells them to end."""
    found = copy(get_context())
    found.Event = Flag  # type: ignore[method-assign, assignment]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Let no handler raise at the death of a worker: it is known, or wanted."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _details(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by signal {-code}: {signal.strsignal(-code)}"
