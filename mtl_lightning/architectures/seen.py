"""Means of what a gate gave, taken while somebody watches."""

from torch import Tensor, nn


class Seen(nn.Module):
    """The mean over rows of a gate's outputs; costs nothing while nobody watches, and is no state."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.count = 0
        self._total: Tensor | None = None

    def watch(self, on: bool) -> None:
        """Start anew, or stop and keep the mean."""
        self.on = on
        if on:
            self.count, self._total = 0, None

    def add(self, values: Tensor) -> None:
        """Take a batch's values [B, …]."""
        if self.on:
            summed = values.detach().double().sum(0)
            self._total = summed if self._total is None else self._total + summed
            self.count += len(values)

    @property
    def mean(self) -> Tensor | None:
        """[…]; None if nothing was seen."""
        return None if self._total is None else self._total / max(1, self.count)
