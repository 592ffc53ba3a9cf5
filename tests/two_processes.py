"""Trains with every method on one of two processes: rank, file to meet at, file for the result."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.methods import Run, at_features, methods

STEPS = 6
SENT: list[int] = []
"""How many numbers each message had."""


def total(tensor: Tensor) -> Tensor:
    SENT.append(tensor.numel())
    found = tensor.detach().clone().contiguous()
    dist.all_reduce(found)
    return found


def both(module: str, folder: Path, timeout: int, *more: str) -> list[dict[str, dict[str, Tensor]]]:
    """What two processes of a module like this one end with."""
    command = [sys.executable, "-m", module]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder / "meet"), str(folder / "out"), *more], cwd=Path(__file__).parents[1],
                         stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        _, error = process.communicate(timeout=timeout)
        assert process.returncode == 0, error
    return [torch.load(folder / f"out{rank}", weights_only=True) for rank in range(2)]


def cases() -> list[tuple[str, dict[str, Any]]]:
    """Each method over parameters; those that can also at features and with weights that are used twice."""
    found: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in methods()]
    found += [(name, {"gradients": "features"}) for name in methods() if at_features(name)]
    return [
        *found,
        ("NashMTL", {"update_every": 3}),
        ("UPGrad", {"update_every": 2, "gradients": "features"}),
        ("UW", {"watch_every": 2}),
    ]


def main() -> None:
    rank, meeting, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    result: dict[str, dict[str, Tensor]] = {"sent": {}}
    for name, options in cases():
        result[str((name, options))] = Run(name, rank, 2, total, **options).go(STEPS).state()
        SENT.clear()
        single = Run(name, rank, 2, total, dtype=torch.float32, **options).go(1).state()
        result["sent"][str((name, options))] = torch.tensor(SENT)
        result[str((name, options))] |= {f"single.{key}": value for key, value in single.items()}
    torch.save(result, f"{out}{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
