"""Signals end a run between two steps, saved, on any number of processes, and with a code that tells the truth."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from mtl_lightning.main import main
from tests.test_resume import RANDOM, assert_same

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parents[1]
CONF = ROOT / "tests" / "conf" / "tiny.yaml"
PATIENCE = 400
"""Seconds that processes of a test may take on a busy machine."""
ONE_TASK = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
JOB = {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "4711", "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"}


def fit(runs: Path, *args: str) -> None:
    main(["fit", "--config", str(CONF), "--runs", str(runs), *RANDOM, *args])


def send(step: int, name: str, rank: int = 0) -> str:
    return f"--trainer.callbacks+={{class_path: tests.killer.SignalAt, init_args: {{step: {step}, name: {name}, rank: {rank}}}}}"


def step(runs: Path) -> int:
    return int(torch.load(runs / "tiny/checkpoints/last.ckpt", weights_only=True)["global_step"])


class Disturb(Callback):
    """Sends the workers what a terminal and a scheduler send to all processes of a run."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for child in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                # Sent by a process of its own: a worker obeys its parent's SIGTERM.
                subprocess.run(["kill", f"-{number.value}", str(child.pid)], check=True)


def test_workers_stay_until_their_parent_ends_them(tmp_path: Path) -> None:
    fit(tmp_path, "--data.num_workers=1", "--trainer.max_epochs=1", "--trainer.callbacks+=tests.test_signals.Disturb")
    assert step(tmp_path) == 6
    until(lambda: not multiprocessing.active_children(), 60)


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_in_a_validation_lets_it_be_finished(tmp_path: Path, name: str) -> None:
    asked = f"--trainer.callbacks+={{class_path: tests.killer.SignalInValidation, init_args: {{name: {name}}}}}"
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, "--checkpoint.every_n_steps=null", "--trainer.num_sanity_val_steps=0", asked)
    assert caught.value.code == {"SIGTERM": 75, "SIGINT": 130}[name]
    assert step(tmp_path) == 6, "the epoch that was validated is saved"
    rows = (tmp_path / "tiny/metrics.csv").read_text()
    assert "val/score" in rows


def test_a_signal_before_the_first_step(tmp_path: Path) -> None:
    asked = "--trainer.callbacks+={class_path: tests.killer.SignalInValidation, init_args: {name: SIGTERM}}"
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, "--checkpoint.every_n_steps=null", asked)
    assert caught.value.code == 75 and step(tmp_path) == 1


def test_a_signal_after_the_training_lets_the_report_be_finished(tmp_path: Path) -> None:
    asked = "--trainer.callbacks+={class_path: tests.killer.SignalInValidation, init_args: {name: SIGTERM, stage: validate}}"
    before = signal.getsignal(signal.SIGTERM)
    fit(tmp_path, "--trainer.max_epochs=1", asked)
    assert (tmp_path / "tiny/finished").exists() and (tmp_path / "tiny/summary.md").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupt_before_the_training_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, "--trainer.callbacks+=tests.killer.SignalInSetup")
    assert caught.value.code == 130
    assert "Ctrl-C: ended, with nothing new saved" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to which a false ``scontrol`` writes what it is told."""
    folder, told = tmp_path / "bin", tmp_path / "told"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return told


def test_slurm_requeues_between_two_steps(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path / "whole")
    for key, value in (ONE_TASK | JOB).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path / "cut", "--ckpt_path=auto", "--checkpoint.every_n_steps=null", send(8, "SIGUSR1"))
    assert caught.value.code == 75
    assert slurm.read_text() == "requeue 4711\n"
    assert "SLURM job 4711 is requeued" in capsys.readouterr().out
    assert not list(tmp_path.rglob("hpc_ckpt*")) and step(tmp_path / "cut") == 9
    fit(tmp_path / "cut", "--ckpt_path=auto")
    assert_same(tmp_path / "whole/tiny", tmp_path / "cut/tiny")


def test_slurm_requeues_a_report_and_no_test(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in (ONE_TASK | JOB).items():
        monkeypatch.setenv(key, value)
    asked = "--trainer.callbacks+={class_path: tests.killer.SignalInValidation, init_args: {name: SIGUSR1, stage: %s}}"
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, "--trainer.max_epochs=1", asked % "validate")
    assert caught.value.code == 75 and slurm.read_text() == "requeue 4711\n"
    assert not (tmp_path / "tiny/finished").exists() and "the run ends as soon" not in capsys.readouterr().err
    fit(tmp_path, "--trainer.max_epochs=1", "--ckpt_path=auto")
    assert (tmp_path / "tiny/finished").exists() and not (tmp_path / "tiny-2").exists()
    main(["test", "--config", str(CONF), "--runs", str(tmp_path), *RANDOM, "--trainer.callbacks+=tests.killer.SignalInTest"])
    assert slurm.read_text() == "requeue 4711\n" and not list(tmp_path.rglob("hpc_ckpt*"))


def start(runs: Path, *args: str, head: tuple[str, ...] = ("-m", "mtl_lightning"), **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, *head, "fit", "--config", str(CONF), "--runs", str(runs), "--trainer.strategy=ddp",
               "--trainer.limit_val_batches=0", "--checkpoint.every_n_steps=null", "--trainer.max_epochs=3000"]  # fmt: skip
    return subprocess.Popen([*command, *args], cwd=ROOT, env=os.environ | environment, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out


def test_a_signal_to_one_of_two_processes_ends_both_at_the_same_step(tmp_path: Path) -> None:
    code, out = ended(start(tmp_path, "--trainer.devices=2", send(1, "SIGTERM", rank=1)))
    assert code == 75, out
    assert out.count("Stopped after step 2") == 1 and "Traceback" not in out
    assert step(tmp_path) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("whom", "name", "code"), [("group", "SIGTERM", 75), ("group", "SIGINT", 130), ("first", "SIGTERM", 75)])
def test_signals_to_two_processes_and_their_workers(tmp_path: Path, whom: str, name: str, code: int) -> None:
    process = start(tmp_path, "--trainer.devices=2", "--data.num_workers=1")
    until((tmp_path / "tiny/checkpoints/last.ckpt").exists)
    (os.killpg if whom == "group" else os.kill)(process.pid, signal.Signals[name])
    found, out = ended(process)
    assert found == code, out
    assert out.count("Stopped after step") == 1 and "Traceback" not in out
    assert f"Stopped after step {step(tmp_path)}," in out


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["launcher", "group"])
def test_a_signal_to_torchrun(tmp_path: Path, whom: str) -> None:
    head = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
    process = start(tmp_path, "--trainer.devices=2", "--data.num_workers=1", head=(*head, "-m", "mtl_lightning"))
    until((tmp_path / "tiny/checkpoints/last.ckpt").exists)
    (os.killpg if whom == "group" else os.kill)(process.pid, signal.SIGTERM)
    found, out = ended(process)
    assert found != 0 and out.count("Stopped after step") == 1, out
    assert f"Stopped after step {step(tmp_path)}," in out


@pytest.mark.slow
def test_slurm_requeues_two_tasks_once(tmp_path: Path, slurm: Path) -> None:
    two = JOB | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_ARRAY_JOB_ID": "12",
                 "SLURM_ARRAY_TASK_ID": "3", "MASTER_PORT": str(20000 + os.getpid() % 20000)}  # fmt: skip
    asked = ["--trainer.devices=2", "--ckpt_path=auto", send(1, "SIGUSR1")]
    tasks = [start(tmp_path / "runs", *asked, **two, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in ("0", "1")]
    found = [ended(task) for task in tasks]
    assert [code for code, _ in found] == [75, 75], found
    assert slurm.read_text() == "requeue 12_3\n"
    assert step(tmp_path / "runs") == 2


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, "--trainer.strategy=auto", "--data.num_workers=2")
    until((tmp_path / "tiny/checkpoints/last.ckpt").exists)
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    process.kill()
    process.communicate(timeout=PATIENCE)  # its workers hold its output open
    until(
        lambda: not any(Path(f"/proc/{pid}/stat").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text() for pid in listed)
    )
