"""Runs of the command line, one after another, each on all of a few processes that were started by hand."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import without_pictures

Said = list[tuple[int, str, str]]
"""Of each run: the exit code, what it printed, and its errors."""


def on_processes(world: int, folder: Path, runs: Sequence[Sequence[str]], timeout: int = 600) -> list[Said]:
    """What each process of a few had to say of each run.

    Args:
        world: how many processes.
        folder: for files of ours.
        runs: the arguments of each.
        timeout: seconds for all of them together.
    """
    (folder / "runs.json").write_text(json.dumps([list(run) for run in runs]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-m", "tests.many", str(folder)], env=given | {"LOCAL_RANK": str(rank)},
                         cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    files = [folder / f"said-{rank}.json" for rank in range(world)]
    assert all(file.exists() for file in files), errors
    return [[tuple(said) for said in json.loads(file.read_text())] for file in files]


def main() -> None:
    from mtl_lightning import launch
    from mtl_lightning.main import main as command_line

    launch.GRACE = 60  # on a busy machine, one may come to the same error much later than another
    folder, said = Path(sys.argv[1]), []
    for args in json.loads((folder / "runs.json").read_text()):
        out, errors, code = io.StringIO(), io.StringIO(), 0
        with without_pictures(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                command_line(args)
            except SystemExit as end:
                code = int(end.code or 0)
        said.append((code, out.getvalue(), errors.getvalue()))
        (folder / f"said-{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
