"""Processes that something else starts: one run folder, one message when one of them fails, and none that waits for ever."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mtl_lightning.errors import ConfigError
from mtl_lightning.launch import LAUNCHED, Peers, meet, out_of_touch
from tests.many import on_processes
from tests.test_distributed import alone, arguments, assert_equal

pytestmark = pytest.mark.usefixtures("no_pictures")

HERE = Path(__file__).parents[1]
FAIL = "--trainer.callbacks+=tests.together.FailOn"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "mtl_lightning"]


def on_nodes(tmp_path: Path, start: list[str], devices: int, envs: list[dict[str, str]]) -> None:
    """Train on two nodes that are both this machine, and compare with one process."""
    # The name is taken already: each node for itself might take another one for free.
    (tmp_path / "runs" / "net").mkdir(parents=True)
    words = [word for word in arguments(tmp_path / "runs", "net", 2 * devices) if not word.startswith("--trainer.devices")]
    words += [f"--trainer.devices={devices}", "--trainer.num_nodes=2"]
    nodes = [
        subprocess.Popen([*start, *words], cwd=HERE, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         env=os.environ | {"OMP_NUM_THREADS": "1"} | env)
        for env in envs
    ]  # fmt: skip
    said = [node.communicate(timeout=900)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["net", "net-2"]
    assert sum(text.count("Run folder") for text in said) == 1
    alone(*arguments(tmp_path / "one", "net", 1))
    assert_equal(tmp_path / "one" / "net", tmp_path / "runs" / "net-2")


def test_two_nodes_of_torchrun_equal_one_process(tmp_path: Path) -> None:
    meeting = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    on_nodes(tmp_path, torchrun(*meeting, "--rdzv_id=net"), 1, [{}, {}])


@pytest.mark.slow
def test_two_nodes_started_by_hand_equal_one_process(tmp_path: Path) -> None:
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "4"}
    on_nodes(tmp_path, [sys.executable, "-m", "mtl_lightning"], 2, [here | {"NODE_RANK": str(node)} for node in range(2)])


def test_an_error_of_one_process_ends_all_with_one_message(tmp_path: Path) -> None:
    broken = ["--trainer.callbacks.rank=1", "--trainer.callbacks.how=data", "--trainer.callbacks.step=3"]
    runs = [
        ["fit", "--no_such_option=1"],
        arguments(tmp_path / "runs", "net", 2, "--ckpt_path=last"),
        arguments(tmp_path / "runs", "net", 2, "--model.encoder.init_args.widths=[0]"),
        arguments(tmp_path / "runs", "net", 1),
        arguments(tmp_path / "runs", "net", 2, FAIL, *broken, "--checkpoint.every_n_steps=2"),
    ]
    # After the last one the other process cannot go on: what it waits for will not come.
    said = on_processes(2, tmp_path, runs)
    messages = [
        "no_such_option",
        "there is no run named 'net'",
        "widths",
        "several processes were started",
        "picture 17 is broken",
    ]
    for number, message in enumerate(messages):
        errors = [process[number][2] if number < len(process) else "" for process in said]
        codes = [process[number][0] for process in said if number < len(process)]
        assert sorted(errors[rank].count("error: ") for rank in range(2)) == [0, 1], (message, errors)
        assert message in "".join(errors)
        assert set(codes) == {1} or codes == [2, 2], (message, codes)
    assert (tmp_path / "runs/net/checkpoints/last.ckpt").is_file()
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["trainer", "torchrun"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("how", "step", "message"),
    [("data", 2, "picture 17"), ("data", -1, "picture 17"), ("memory", 2, "as it were"), ("kill", 2, "ended without a message")],
)
def test_whoever_fails_all_end(tmp_path: Path, launcher: str, rank: int, how: str, step: int, message: str) -> None:
    words = arguments(tmp_path, "net", 2, FAIL, f"--trainer.callbacks.rank={rank}", f"--trainer.callbacks.how={how}",
                      f"--trainer.callbacks.step={step}")  # fmt: skip
    start = [sys.executable, "-m", "mtl_lightning"]
    if launcher == "torchrun":
        start = torchrun("--nproc_per_node=2", f"--master_port={free_port()}")
    begin = time.monotonic()
    done = subprocess.run([*start, *words], cwd=HERE, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode != 0
    assert time.monotonic() - begin < 500
    if how == "data":
        assert done.stderr.count(f"error: {message}") == 1, done.stderr
    elif how == "memory" or launcher == "trainer":
        assert message in done.stderr


def test_who_waits_for_the_first_process_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}\) did not answer in 1 s.*MASTER_ADDR"):
        Peers(("127.0.0.1", port), False, False, wait=1)
    first = Peers(("127.0.0.1", port), True, True)
    other = Peers(("127.0.0.1", port), False, False, wait=1)
    with pytest.raises(ConfigError, match="does not name a run folder in 1 s"):
        other.agree(lambda: "never asked")
    assert first.agree(lambda: "here") == other.agree(lambda: "not this") == "here"
    assert other.fail()
    assert not first.fail()
    for peers in (other, first):
        peers.leave()


def test_who_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert meet(0) is None
    # What the trainer leaves behind in a process that has started others.
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv(LAUNCHED, "127.0.0.1:1")
    assert meet(0) is None


def test_tasks_of_slurm_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    job = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_JOB_NAME": "net",
        "SLURM_LOCALID": "0",
        "SLURM_JOB_ID": "7",
        "SLURM_NODELIST": "127.0.0.1",
    }
    for name, value in (job | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    met = []
    for rank in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setenv("SLURM_NODEID", str(rank))
        met.append(meet(3))
    first, other = met
    assert first is not None
    assert other is not None
    assert (first.first, first.hosts, other.first, other.hosts) == (True, True, False, False)
    assert first.agree(lambda: "runs/net-2") == other.agree(lambda: "runs/net") == "runs/net-2"
    for peers in (other, first):
        peers.leave()


def test_what_says_that_another_process_is_gone() -> None:
    assert "ended without a message" in str(
        out_of_touch(RuntimeError("[gloo/pair.cc:545] Connection closed by peer [127.0.0.1]"))
    )
    assert "ended without a message" in str(out_of_touch(torch.distributed.DistError("Broken pipe")))
    assert out_of_touch(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
