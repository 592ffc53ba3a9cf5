"""A worker that dies or does not answer ends the run with an error that says why, and no process is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from mtl_lightning.data.loader import AugmentedDataset, EpochSampler, ResumableLoader
from mtl_lightning.data.workers import Workers, worker_error
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.main import main
from tests.test_loader import SPEC
from tests.traps import TrapDataModule, TrapDataset

pytestmark = pytest.mark.usefixtures("no_pictures")
ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "conf" / "tiny.yaml"


def loader(trap: str, timeout: float = 60.0) -> ResumableLoader:
    rows = TrapDataset("train", 12, 0, {}, (16, 16))
    rows.trap, rows.row = trap, 7
    augmented = AugmentedDataset(rows, lambda sample: {"id": sample["id"], "image": sample["image"]}, 0)
    order = EpochSampler(augmented, shuffle=False, seed=0)
    return ResumableLoader(augmented, SPEC, order, 3, drop_last=False, num_workers=2, pin_memory=False, timeout=timeout)


def nobody_is_left(before: Collection[BaseProcess]) -> bool:
    """Whether all processes end that were not there before; other tests may have left some of theirs to the collector."""
    return all(process.join(10) or process.exitcode is not None for process in set(active_children()) - set(before))


@pytest.mark.parametrize(
    ("trap", "words"),
    [
        ("killed", ["died (killed by signal", "Killed)", "memory", "data.init_args.num_workers", "--ckpt_path last"]),
        ("crash", ["died (killed by signal", "Segmentation fault)", "damaged file"]),
        ("exit", ["died (exit code 3)"]),
    ],
)
@pytest.mark.parametrize("after_a_fit", [False, True])
def test_a_dead_worker(trap: str, words: list[str], after_a_fit: bool) -> None:
    children, start = active_children(), time.monotonic()
    assert next(iter(loader(""))).ids == ["train-0", "train-1", "train-2"]  # torch listens from the first workers of a process on
    before = signal.getsignal(signal.SIGCHLD)
    if after_a_fit:
        # The trainer puts back what was there before it, and torch never listens again.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with pytest.raises((DataError, RuntimeError)) as caught:
            for _ in loader(trap, timeout=200):
                time.sleep(0.3 * after_a_fit)  # as long as a step takes, in which it may die, too
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert time.monotonic() - start < 100, "it was noticed when the time for the batch was over"
    # Where torch listens, it raises in the body of the loop, too, and the main program asks what that is.
    message = str(caught.value if isinstance(caught.value, DataError) else worker_error(caught.value))
    assert all(word in message for word in words), message
    caught.value.__traceback__ = None  # it holds the loader
    assert nobody_is_left(children)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_ones_own_data_is_told_at_once(workers: int) -> None:
    rows, children, start = TrapDataset("train", 12, 0, {}, (16, 16)), active_children(), time.monotonic()

    def refuse(sample: object) -> NoReturn:
        raise OSError("a disk of one's own")

    order = EpochSampler(augmented := AugmentedDataset(rows, refuse, 0), shuffle=False, seed=0)
    with pytest.raises(OSError, match="of one's own"):
        list(ResumableLoader(augmented, SPEC, order, 3, drop_last=False, num_workers=workers, pin_memory=False, timeout=60))
    assert time.monotonic() - start < 4
    assert nobody_is_left(children)


def test_a_stuck_worker_is_an_error_in_time_and_its_rows_are_named() -> None:
    children, start, seen = active_children(), time.monotonic(), []
    with pytest.raises(DataError) as caught:
        # Time enough for two workers to start where other work goes on.
        for batch in loader("sleep", timeout=8):
            seen += batch.ids
    assert seen == [f"train-{row}" for row in range(6)]
    message = str(caught.value)
    assert "train-6, train-7, train-8 took longer" in message and "data.init_args.worker_timeout (8 s)" in message
    assert time.monotonic() - start < 60
    assert nobody_is_left(children)


def test_a_death_whose_signal_is_lost_is_noticed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    children, start = active_children(), time.monotonic()
    assert next(iter(loader(""))).ids  # torch listens from the first workers of a process on
    monkeypatch.setattr(Workers, "_child_ended", lambda *_: None)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with pytest.raises(DataError, match=r"died \(killed by signal 9: Killed\)"):
            list(loader("killed", timeout=200))
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert time.monotonic() - start < 100
    assert nobody_is_left(children)


def test_a_lock_that_a_killed_worker_held_is_not_waited_for() -> None:
    children, data = active_children(), loader("", timeout=200)
    batches = iter(data)
    assert next(batches).ids
    event = data._iterator._workers_done_event  # type: ignore[attr-defined]
    if not (holder := os.fork()):
        getattr(event, "_cond", threading.Lock()).acquire()
        os._exit(0)
    os.waitpid(holder, 0)
    for process in set(active_children()) - set(children):
        os.kill(process.pid or 0, signal.SIGKILL)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for ever"))
    signal.alarm(60)
    try:
        with pytest.raises((DataError, RuntimeError)):
            list(batches)
        data._iterator._shutdown_workers()  # type: ignore[attr-defined]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_the_error_is_told_wherever_torch_raises_it() -> None:
    text = "DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's workers are out of …"
    error = worker_error(RuntimeError(text))
    assert error is not None and "pid 77" in str(error) and "shared memory" in str(error)
    assert worker_error(RuntimeError("DataLoader worker (pid(s) 3, 4) exited unexpectedly")) is not None
    assert worker_error(RuntimeError("something else")) is None
    assert worker_error(ValueError(text)) is None


def test_times_that_are_none() -> None:
    for seconds in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="worker_timeout"):
            TrapDataModule("sleep", worker_timeout=seconds)
    data = TrapDataModule("sleep", worker_timeout=5, num_workers=0)
    assert data.worker_timeout == 5


def run(command: str, runs: Path, trap: str, *args: str) -> int:
    options = [f"--data.init_args.trap={trap}", "--data.init_args.num_workers=2", "--data.init_args.worker_timeout=8", *args]
    with pytest.raises(SystemExit) as caught:
        main([command, "--config", str(TINY), "--data", "tests.traps.TrapDataModule", "--runs", str(runs), *options])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_run_keeps_what_it_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    children = active_children()
    # Each of two workers gives 24 rows in an epoch.
    assert run("fit", tmp_path, "killed", "--data.init_args.after=30", "--data.init_args.val_rows=0") == 1
    error = capsys.readouterr().err
    assert "error: a worker" in error and "Traceback" not in error
    saved = torch.load(tmp_path / "tiny/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert run("fit", tmp_path, "sleep", "--ckpt_path=last", "--data.init_args.val_rows=0") == 1
    error = capsys.readouterr().err
    assert "worker_timeout (8 s)" in error and "train-5" in error and "Traceback" not in error
    assert nobody_is_left(children)


@pytest.mark.slow
@pytest.mark.parametrize("trap", ["killed", "sleep", "pipe", "leave"])
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_command_ends_in_time_and_leaves_no_process(command: str, trap: str, tmp_path: Path) -> None:
    environment = os.environ | {"TRAP_PIPE": str(tmp_path / "pipe"), "PYTHONPATH": str(ROOT), "TRAP_MARK": str(tmp_path)}
    os.mkfifo(tmp_path / "pipe")
    common = ["--config", str(TINY), "--data", "tests.traps.TrapDataModule", "--runs", str(tmp_path / "runs")]
    common += ["--data.init_args.num_workers=2", "--data.init_args.worker_timeout=10", f"--data.init_args.trap={trap}"]
    if command != "fit":
        main(["fit", *common, "--data.init_args.split=none"])
    split = {"fit": "val", "validate": "val"}.get(command, "test")
    done = subprocess.run(
        [sys.executable, "-m", "mtl_lightning", command, *common, f"--data.init_args.split={split}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr
    mark = f"TRAP_MARK={tmp_path}".encode()
    left = [
        place for place in Path("/proc").glob("[0-9]*/environ") if place.parent.name != str(os.getpid()) and _has(place, mark)
    ]
    assert not left


def _has(place: Path, mark: bytes) -> bool:
    try:
        return mark in place.read_bytes()
    except OSError:
        return False
