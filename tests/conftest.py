"""One thread per test process: the tiny networks gain nothing from more, and two pytest workers share two cores."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from mtl_lightning.callbacks import report

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_run_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first process tells those it starts about its run folder; a test's run must not tell the next test's.
    monkeypatch.setenv("MTL_LIGHTNING_RUN", "")
    monkeypatch.delenv("MTL_LIGHTNING_RUN")
    monkeypatch.setenv("WANDB_MODE", "offline")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _handlers_of_before() -> Iterator[None]:
    """Lightning ignores Ctrl-C for good once a run was interrupted, and the next test's run would not hear it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What a shell starts in the background ignores Ctrl-C from the start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def without_pictures() -> Iterator[None]:
    """For runs whose pictures nobody looks at: drawing them is half of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())
        patch.setattr(report, "SHOWN", 1)
        yield


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """The same for a whole test."""
    with without_pictures():
        yield
