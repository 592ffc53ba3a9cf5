"""Means of what a gate gave, taken while somebody watches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Seen(nn.Module):
    """The mean over rows of a gate's outputs; costs nothing while nobody watches, and is no state."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.count = 0
        self.total: Tensor | None = None

    def watch(self, on: bool) -> None:
        """Start anew, or stop and keep the mean."""
        self.on = on
        if on:
            self.count, self.total = 0, None

    def add(self, values: Tensor) -> None:
        """Take a batch's values [B, …]."""
        if self.on:
            summed = values.detach().double().sum(0)
            self.total = summed if self.total is None else self.total + summed
            self.count += len(values)

    @property
    def mean(self) -> Tensor | None:
        """[…]; None if nothing was seen."""
        return None if self.total is None else self.total / max(1, self.count)


@contextmanager
def unseen(module: nn.Module) -> Iterator[None]:
    """What runs meanwhile is not counted."""
    counting = [part for part in module.modules() if isinstance(part, Seen) and part.on]
    for one in counting:
        one.on = False
    try:
        yield
    finally:
        for one in counting:
            one.on = True


DIMENSIONS = 4
"""Of what a gate gives for a row, at most."""


def gather(seen: Sequence[Seen], add_up: Callable[[Tensor], Tensor], device: torch.device | str = "cpu") -> None:
    """Give every process the means over the rows of all, in two reductions.

    Args:
        seen: the same ones in the same order on every process; one that saw no row for some of them takes part, too.
        add_up: a tensor over the processes.
        device: where it wants that tensor.
    """
    if not seen:
        return
    shapes = torch.zeros(len(seen), 2 + DIMENSIONS, dtype=torch.long)
    for row, one in zip(shapes, seen, strict=True):
        if one.total is not None:
            row[: 2 + one.total.ndim] = torch.tensor([1, one.total.ndim, *one.total.shape])
    found = []
    for having, dimensions, *sizes in add_up(shapes.to(device)).tolist():
        found.append([size // having for size in sizes[: dimensions // having]] if having else None)
    parts = []
    for one, shape in zip(seen, found, strict=True):
        total = torch.zeros(shape or [0], dtype=torch.double) if one.total is None else one.total.cpu()
        parts.append(torch.cat([torch.tensor([one.count], dtype=torch.double), total.flatten()]))
    sums = torch.split(add_up(torch.cat(parts).to(device)).cpu(), [len(part) for part in parts])
    for one, part, shape in zip(seen, sums, found, strict=True):
        if shape is not None:
            one.count, one.total = int(part[0]), part[1:].view(shape)
