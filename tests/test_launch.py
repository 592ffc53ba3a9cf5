"""Processes that something else starts: one run folder, one message when one of them fails, and none that waits for ever."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mtl_lightning.errors import ConfigError, DataError
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


@pytest.mark.slow
def test_two_nodes_of_torchrun_equal_one_process(tmp_path: Path) -> None:
    meeting = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    on_nodes(tmp_path, torchrun(*meeting, "--rdzv_id=net"), 1, [{}, {}])


@pytest.mark.slow
def test_two_nodes_started_by_hand_equal_one_process(tmp_path: Path) -> None:
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "4"}
    on_nodes(tmp_path, [sys.executable, "-m", "mtl_lightning"], 2, [here | {"NODE_RANK": str(node)} for node in range(2)])


@pytest.mark.slow
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
    monkeypatch.setenv(LAUNCHED, "127.0.0.1:1:1")
    assert meet(0) is None
    monkeypatch.delenv(LAUNCHED)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert meet(0) is None


MEETING = """
import os, sys
from mtl_lightning.launch import LAUNCHED, meet
os.environ[LAUNCHED] = "127.0.0.1:{port}:" + sys.argv[1]
os.environ["LOCAL_RANK"] = "1"
print(os.getpid(), flush=True)
meet(0)
"""


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{process}/stat")
    # Where nobody asks for the exit codes of orphans.
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.skipif(os.name != "posix", reason="Windows does not tell of a parent that ended")
def test_a_process_ends_with_the_one_that_started_it_and_never_answered(tmp_path: Path) -> None:
    (tmp_path / "meeting.py").write_text(MEETING.format(port=free_port()))
    line, given = f"'{sys.executable}' '{tmp_path}/meeting.py' $$ & read line", os.environ | {"PYTHONPATH": str(HERE)}
    shell = subprocess.Popen(["sh", "-c", line], cwd=HERE, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=given)
    assert shell.stdin is not None and shell.stdout is not None
    started = int(shell.stdout.readline())
    time.sleep(3)
    assert not gone(started)
    shell.stdin.close()
    assert_gone([started], shell)


def assert_gone(processes: list[int], starter: subprocess.Popen[str]) -> None:
    starter.wait(timeout=60)
    end = time.monotonic() + 120
    while not all(map(gone, processes)) and time.monotonic() < end:
        time.sleep(0.1)
    left = [process for process in processes if not gone(process)]
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find a process's children")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_processes_that_still_import_end_with_their_starter(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-m", "mtl_lightning", *arguments(tmp_path, "net", 2)]
    starter = subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    listed, found, end = Path(f"/proc/{starter.pid}/task/{starter.pid}/children"), list[int](), time.monotonic() + 200
    while not found and time.monotonic() < end:
        time.sleep(0.1)
        found = [
            int(each) for each in listed.read_text().split() if b"mtl_lightning" in Path(f"/proc/{each}/cmdline").read_bytes()
        ]
    assert found
    starter.send_signal(how)
    assert_gone(found, starter)
    assert starter.returncode != 0


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
    # What merely names such a thing.
    assert out_of_touch(ConfigError("trainer.strategy: process_group_backend is 'glou', expected gloo or nccl")) is None
    assert out_of_touch(DataError("/data/igloo/7.png: is no picture")) is None
    assert out_of_touch(FileNotFoundError("/data/igloo/7.png")) is None
    assert out_of_touch(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
