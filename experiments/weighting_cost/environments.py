"""Virtual environments of the peers, and talking to the process that runs in one."""

import json
import subprocess
import sys
import sysconfig
from dataclasses import asdict
from pathlib import Path
from typing import Any

from network import Shape

HERE = Path(__file__).parent
NEEDS = {
    # The only version whose weighting is a package of its own modules; scipy it imports without asking for it.
    "libmtl": ["LibMTL==1.1.5", "scipy"],
    # 0.18 is the first with its solver behind an extra; these three are that extra.
    "torchjd": ["torchjd>=0.18", "qpsolvers", "quadprog", "scipy"],
}
IMPORTS = {"libmtl": "import peer; peer.libmtl()", "torchjd": "import torchjd.autojac, quadprog, qpsolvers"}
VERSION = "import importlib.metadata as m; print(m.version({!r}))"


class Missing(Exception):
    """Why a peer cannot be measured."""


def environment(library: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, made if it is not there.

    The peer's own packages are installed without what they depend on: torch and numpy are those of the environment that
    measures, so that both sides run on the same kernels.
    """
    home = folder.absolute() / library
    python = home / "bin" / "python"
    if not python.exists():
        _call([sys.executable, "-m", "venv", str(home)], f"python -m venv {home}")
        site = next((home / "lib").glob("python*/site-packages"))
        (site / "measured.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    if subprocess.run([str(python), "-c", IMPORTS[library]], cwd=HERE, capture_output=True, check=False).returncode:
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", *NEEDS[library]]
        _call(install, f"pip install {' '.join(NEEDS[library])}")
        _call([str(python), "-c", IMPORTS[library]], IMPORTS[library])
    return python


def _call(command: list[str], what: str) -> None:
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"`{what}` failed: {words[-1] if words else f'exit status {done.returncode}'}")


class Worker:
    """A process in a peer's environment.

    Args:
        library: the peer.
        folder: holds the environments.
        threads: of torch.

    Raises:
        Missing: there is none to be had.
    """

    def __init__(self, library: str, folder: Path, threads: int) -> None:
        python = environment(library, folder)
        found = subprocess.run([str(python), "-c", VERSION.format(library)], capture_output=True, text=True, check=True)
        self.library, self.version = library, found.stdout.strip()
        self.log = folder / f"{library}.log"
        with self.log.open("w") as log:
            command = [str(python), str(HERE / "peer.py"), str(threads)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise Missing(f"{self.library} ended, see {self.log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Missing(f"{self.library}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Remote:
    """A peer's step, to be timed like ours.

    Args:
        worker: runs it.
        name: a name for it.
        shape: of the network.
        method: its own name of it.
        device: where.
        autocast: forward passes in bfloat16.
        setting: of the library.
    """

    cycle = 1
    cpu_time = False

    def __init__(
        self, worker: Worker, name: str, shape: Shape, method: str, device: str, autocast: bool, setting: dict[str, Any]
    ) -> None:
        self.worker, self.name = worker, name
        known = {"name": name, "library": worker.library, "method": method, "setting": setting}
        made = worker.ask(do="make", shape=asdict(shape), device=device, autocast=autocast, **known)
        self.first: list[float] = made["losses"]

    def run(self, steps: int) -> dict[str, float]:
        return {"": self.worker.ask(do="run", name=self.name, steps=steps, cpu_time=self.cpu_time)["seconds"]}

    def drop(self) -> None:
        self.worker.ask(do="drop", name=self.name)
