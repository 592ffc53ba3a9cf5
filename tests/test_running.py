"""One process at a time trains in a run folder, and one that is gone stands in nobody's way."""

import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from mtl_lightning.errors import ConfigError
from mtl_lightning.main import main
from mtl_lightning.running import Hold, check_free
from mtl_lightning.runs import choose_run, keep_config, new_folder

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
SHORT = ("--model.only=[level]", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1",
         "--trainer.limit_test_batches=1", "--trainer.num_sanity_val_steps=0")  # fmt: skip


def call(command: str, root: Path, *args: str) -> None:
    main([command, "--config", str(CONF), "--runs", str(root), *SHORT, *args])


@contextmanager
def another(does: Callable[[], Any]) -> Iterator[int]:
    """Another process that has done something, and lives until it is killed."""
    ready, done = os.pipe()
    child = os.fork()
    if not child:
        with suppress(BaseException):
            os.setpgid(0, 0)
            kept = does()  # what it holds must not be collected
            os.write(done, b".")
            time.sleep(600 if kept is not None else 0)
        os._exit(1)
    os.close(done)
    try:
        assert os.read(ready, 1) == b"."
        yield child
    finally:
        os.close(ready)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def is_held(folder: Path) -> bool:
    """Whether another process than this one would be refused."""
    child = os.fork()
    if not child:
        try:
            Hold(folder).release()
            os._exit(0)
        except ConfigError:
            os._exit(1)
        finally:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return code == 1


class Look(Callback):
    """Notes what another process finds, while this one trains and while it evaluates the best epoch."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, *_: Any) -> None:
        self._note("train")

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        self._note(trainer.state.fn.value)

    def _note(self, when: str) -> None:
        with (self.folder / "seen.txt").open("a") as file:
            file.write(f"{when} {is_held(self.folder / 'tiny')}\n")


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_process_is_refused_and_the_first_one_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tiny"
    call("fit", tmp_path, f"--trainer.callbacks+={{class_path: tests.test_running.Look, init_args: {{folder: {tmp_path}}}}}")
    # From its start to its report.
    assert (tmp_path / "seen.txt").read_text().splitlines() == ["train True", "train True", "fit True", "validate True"]
    (folder / "finished").unlink()
    with another(lambda: Hold(folder)) as process:
        before = files(folder)
        for option in ("last", "auto"):
            capsys.readouterr()
            with pytest.raises(SystemExit) as caught:
                call("fit", tmp_path, f"--ckpt_path={option}", "--trainer.max_epochs=2")
            said = capsys.readouterr().err
            assert caught.value.code == 1 and "Traceback" not in said
            assert f"{folder} is being trained by process {process} on {socket.gethostname()}, since 20" in said
            assert "set another name" in said and f"remove {folder / 'running'}" in said
        assert files(folder) == before
        call("test", tmp_path)
        assert "tiny: test of" in capsys.readouterr().out
        assert is_held(folder)
    # The lock of a process that was killed is nobody's; what ends in an error lets go by itself.
    assert (folder / "running").exists()
    with pytest.raises(SystemExit):
        call("fit", tmp_path, "--ckpt_path=last", "--model.encoder.init_args.widths=[8, 9]")
    assert not (folder / "running").exists()
    call("fit", tmp_path, "--ckpt_path=auto", "--trainer.max_epochs=2")
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert not (folder / "running").exists() and not is_held(folder)


def test_a_worker_that_outlives_its_run_holds_nothing(tmp_path: Path) -> None:
    def run() -> Hold:
        held = Hold(tmp_path)
        if not os.fork():
            time.sleep(600)
        return held

    with another(run) as process:
        assert is_held(tmp_path)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.killpg(process, 0)  # the worker is there
        assert not is_held(tmp_path)


def test_a_process_that_was_forked_does_not_let_go(tmp_path: Path) -> None:
    held = Hold(tmp_path)
    with another(held.release):
        assert is_held(tmp_path) and (tmp_path / "running").exists()
    held.release()
    held.release()
    assert not is_held(tmp_path) and not list(tmp_path.iterdir())


def test_a_file_that_was_taken_away_before_it_was_locked_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lockf, calls = fcntl.lockf, []

    def late(descriptor: int, how: int) -> None:
        if not calls:
            (tmp_path / "running").unlink()
        calls.append(how)
        lockf(descriptor, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", late)
        held = Hold(tmp_path)
    assert len(calls) == 2 and is_held(tmp_path)
    held.release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_runs_go_on_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refused)
    held = [Hold(tmp_path), Hold(tmp_path)]
    check_free(tmp_path)
    for each in held:
        each.release()
    assert not list(tmp_path.iterdir())


def test_auto_starts_no_other_run_beside_one_that_has_saved_nothing_yet(tmp_path: Path) -> None:
    folder = new_folder(tmp_path, "net")
    keep_config(folder, "name: net\n")
    with another(lambda: Hold(folder)), pytest.raises(ConfigError, match="is being trained by process"):
        choose_run(tmp_path, "net")
    assert choose_run(tmp_path, "net") == (False, f"{folder} has no checkpoint: a new run starts")
