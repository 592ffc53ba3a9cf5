"""What any process asks for, all of them know at the end of the same step."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


class Agreement:
    """The maximum over all processes of a few small numbers, gathered while a step is computed; no message with one process.

    Args:
        numbers: gives this process's, as many on all of them.
        device: where the process group's tensors live.
        processes: how many there are.
    """

    def __init__(self, numbers: Callable[[], list[int]], device: torch.device, processes: int) -> None:
        self.numbers, self.device, self.processes = numbers, device, processes
        # On a stream of its own: asking and reading wait for the message alone, and never for the step's kernels.
        aside = device.type == "cuda" and processes > 1
        self._stream = torch.cuda.Stream(device) if aside else None  # type: ignore[no-untyped-call]
        self._sent: tuple[Tensor, dist.Work] | None = None

    def ask(self) -> None:
        """Send this process's numbers; all processes do so between the same other messages."""
        if self.processes > 1:
            with torch.cuda.stream(self._stream):
                tensor = torch.tensor(self.numbers(), device=self.device)
                self._sent = tensor, dist.all_reduce(tensor, op=dist.ReduceOp.MAX, async_op=True)

    def answer(self) -> list[int]:
        """The maxima of what was asked last; with one process, its own numbers of now."""
        if self._sent is None:
            return self.numbers()
        (tensor, work), self._sent = self._sent, None
        with torch.cuda.stream(self._stream):
            work.wait()
            return tensor.tolist()
