"""A second look at a batch that leaves no trace: batch statistics and random numbers are put back. Pure torch."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Put the module's buffers back at the end (running means of batch norm, say), whatever ran in it meanwhile."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            # Past autograd, for which a graph that lives on would have changed; nothing runs backward through these.
            buffer.data.copy_(value)


class Dice:
    """The state of the random number generators, to draw the same dropout again.

    Args:
        device: of the network.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cpu = torch.get_rng_state()
        self._cuda: Tensor | None = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def unused(self) -> bool:
        """Whether nothing was drawn since."""
        same = torch.equal(self._cpu, torch.get_rng_state())
        return same and (self._cuda is None or torch.equal(self._cuda, torch.cuda.get_rng_state(self.device)))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw from the state that was kept; afterwards go on as if nothing had been drawn."""
        devices = [self.device] if self._cuda is not None else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            with torch.cuda.device(self.device) if devices else nullcontext():
                if self._cuda is not None:
                    torch.cuda.set_rng_state(self._cuda, self.device)
                yield
