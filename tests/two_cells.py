"""Trains combinations of architecture, encoder and weighting on one of two processes: rank, files to meet and for the result."""

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from tests.cells import Cell, Trial, every_cell, pairwise
from tests.two_processes import total

STEPS = 3


def cells(every: bool) -> list[Cell]:
    """Those that make sense, of all or of the few."""
    return [cell for cell in (every_cell() if every else pairwise()) if not cell.refused]


def digest(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large tensors as sums over random directions: a file of them all would be gigabytes."""
    found = {}
    for key, value in state.items():
        if value.numel() > 64 and value.is_floating_point():
            generator = torch.Generator().manual_seed(0)
            value = torch.randn(4, value.numel(), generator=generator, dtype=value.dtype) @ value.flatten()
        found[key] = value
    return found


def main() -> None:
    rank, meeting, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    result = {str(cell): digest(Trial(cell, rank, 2, total).go(STEPS).state()) for cell in cells(sys.argv[4] == "every")}
    torch.save(result, f"{out}{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
