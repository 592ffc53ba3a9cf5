"""What it means that a process which prepares batches died or does not answer: errors of ours in place of torch's."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mtl_lightning.errors import ConfigError, DataError

WORKER_TIMEOUT = 300.0
"""Seconds that a batch may take in the workers: less than the ten minutes after which other processes of a run stop waiting."""
SHOWN = 32
"""Rows that a message lists."""
DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is )?(killed by signal|exited unexpectedly)(.*)", re.DOTALL)
LATE = re.compile(r"DataLoader timed out after")
SAVED = "What was saved stays as it is: a fit goes on from there with --ckpt_path last"


def check_timeout(seconds: float) -> None:
    """Raise :class:`ConfigError` for what is no time."""
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"data.init_args.worker_timeout is {seconds:g}, expected seconds, or 0 to wait for ever")


def worker_error(error: BaseException) -> DataError | None:
    """The error of ours for one of torch's about a worker; None for any other.

    torch raises that of a dead worker wherever the main process is at the time, not only where it waits for a batch.
    """
    died = DIED.search(str(error)) if isinstance(error, RuntimeError) else None
    if died is None:
        return None
    pids, how, rest = died.groups()
    details = rest.strip(" :.").split(".")[0].removeprefix("with ")
    return DataError(f"a worker, a process that prepares batches (pid {pids}), {_end(how, details)}. {SAVED}")


def _end(how: str, details: str) -> str:
    if how != "killed by signal":
        return f"ended by itself ({details or 'no exit code'}); with data.init_args.num_workers at 0 the cause is seen"
    told = f"was killed by a signal ({details})"
    if "Bus error" in details:
        return f"{told}: the shared memory is full (containers often have 64 MB); enlarge it, or lower data.init_args.num_workers"
    if "Segmentation" in details or "Abort" in details:
        return f"{told}: a library crashed, perhaps at a damaged file; with data.init_args.num_workers at 0 it is seen at which"
    return (
        f"{told}: most likely the memory was full, and the system ended it; lower data.init_args.num_workers, batch_size, "
        "max_pixels or the cache"
    )


def watched(batches: Iterator[Any], timeout: float, rows: Callable[[], Sequence[str]] = tuple) -> Iterator[Any]:
    """The same batches.

    Args:
        batches: of a loader of torch's.
        timeout: of that loader.
        rows: names the rows of the next batch.

    Raises:
        DataError: a worker died, or a batch took longer than the loader waits.
    """
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if LATE.match(str(error)):
                raise _late(timeout, rows()) from error
            if (ours := worker_error(error)) is not None:
                raise ours from error
            raise
        yield batch


def _late(timeout: float, rows: Sequence[str]) -> DataError:
    some = ", ".join(rows[:SHOWN]) + (", …" if len(rows) > SHOWN else "")
    which = f" of the rows {some}" if rows else ""
    return DataError(
        f"the batch{which} took longer than data.init_args.worker_timeout ({timeout:g} s): a file's storage does not answer, or "
        f"the workers are too slow. Look at these files, or set it higher (0 waits for ever). {SAVED}"
    )
