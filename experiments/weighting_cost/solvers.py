"""What a call of each gradient method costs on a Gramian alone: medians in ms, as a Markdown table.

`python experiments/weighting_cost/solvers.py [--repeats 200]`. Each cell is over Gramians of several seeds, each solved once in
turn, so that no method profits from a warm cache more than another.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import mtl_lightning.weighting as weighting
from mtl_lightning.weighting import GradientWeighting, TaskInfo

# Class, options. Methods of the list that the package does not export are left out, with a line on stderr.
METHODS: list[tuple[str, dict[str, object]]] = [
    ("NashMTL", {}),
    ("FairGrad", {"alpha": 2.0}),
    ("MGDA", {}),
    ("CAGrad", {}),
    ("IMTLG", {}),
    ("AlignedMTL", {}),
    ("ConFIG", {}),
    ("UPGrad", {}),
    ("DualProj", {}),
    ("PCGrad", {}),
    ("GradVac", {}),
    ("NTKMTL", {}),
]
TASKS = (3, 11, 40)
SEEDS = 10


def gaussian(tasks: int, generator: torch.Generator) -> Tensor:
    """Nearly orthogonal gradients."""
    return torch.randn(tasks, 1000, generator=generator, dtype=torch.float64)


def conflicting(tasks: int, generator: torch.Generator) -> Tensor:
    """Gradients that nearly cancel: their mean is a hundredth of what it would be."""
    rows = torch.randn(tasks, 2 * tasks, generator=generator, dtype=torch.float64)
    return rows - 0.99 * rows.mean(0)


def adversarial(tasks: int, generator: torch.Generator) -> Tensor:
    """Fewer dimensions than tasks, every second gradient nearly opposite to another one, norms over six decades."""
    rows = torch.randn(tasks, max(2, 2 * tasks // 3), generator=generator, dtype=torch.float64)
    rows[1::2] = -rows[: len(rows[1::2]) * 2 : 2] + 1e-2 * rows[1::2]
    return rows * 10 ** (6 * torch.rand(tasks, 1, generator=generator, dtype=torch.float64) - 3)


def duplicate(tasks: int, generator: torch.Generator) -> Tensor:
    """A third of the tasks are the first one again."""
    rows = torch.randn(tasks, 2 * tasks, generator=generator, dtype=torch.float64)
    rows[1 : 1 + tasks // 3] = rows[0].clone()
    return rows


KINDS: list[Callable[[int, torch.Generator], Tensor]] = [gaussian, conflicting, adversarial, duplicate]


def gramians(kind: Callable[[int, torch.Generator], Tensor], tasks: int) -> list[Tensor]:
    drawn = [kind(tasks, torch.Generator().manual_seed(seed)) for seed in range(SEEDS)]
    return [rows @ rows.T for rows in drawn]


def measure(method: GradientWeighting, drawn: list[Tensor], repeats: int) -> float:
    """Median ms of a call."""
    times = []
    for index in range(-3, repeats):
        start = time.perf_counter()
        method(drawn[index % len(drawn)])
        if index >= 0:
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"ms per call, median of {repeats}; {' / '.join(map(str, TASKS))} tasks; torch {torch.__version__}, one thread\n")
    print(f"| method | {' | '.join(kind.__name__ for kind in KINDS)} |")
    print(f"|---|{'---|' * len(KINDS)}")
    for name, options in METHODS:
        kind_of_method = getattr(weighting, name, None)
        if kind_of_method is None:
            print(f"{name}: not exported", file=sys.stderr)
            continue
        cells = []
        for kind in KINDS:
            parts = []
            for tasks in TASKS:
                method = kind_of_method(**options)
                method.prepare([TaskInfo(str(task)) for task in range(tasks)])
                parts.append(f"{measure(method, gramians(kind, tasks), repeats):.2f}")
            cells.append(" / ".join(parts))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
