"""Where the network's pixels are in the stored picture, and bringing dense predictions back to it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

STRIP = 1 << 24
"""Numbers of a raw prediction that are brought to a picture's size at once: large pictures need no more memory than that."""


class Frame(NamedTuple):
    """The map from a stored picture to what the network saw of it: seen = stored * scale + shift, along each side.

    Coordinates are continuous, in pixels, from the upper left corner of the upper left pixel; pairs are (vertical, horizontal).

    Attributes:
        size: height and width of the stored picture.
        seen: height and width that the network saw.
        scale: network pixels per stored pixel, > 0.
        shift: where the stored picture's corner is in the network's; negative after a crop.
    """

    size: tuple[int, int]
    seen: tuple[int, int]
    scale: tuple[float, float]
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def whole(cls, size: tuple[int, int], seen: tuple[int, int]) -> "Frame":
        """The whole picture, resized."""
        return cls(size, seen, (seen[0] / size[0], seen[1] / size[1]))

    def stored(self, y: float, x: float) -> tuple[float, float]:
        """A place in the stored picture, from fractions of the height and width that the network saw."""
        return (
            (y * self.seen[0] - self.shift[0]) / self.scale[0],
            (x * self.seen[1] - self.shift[1]) / self.scale[1],
        )

    def back(self, raw: Tensor, decode: Callable[[Tensor], list[Any]], fill: float) -> Tensor:
        """Decode a dense prediction at the stored picture's size.

        The raw prediction is resized bilinearly, then decoded, so that borders are as fine as the raw prediction tells.

        Args:
            raw: [C, h, w], as the network gave it.
            decode: a task's, pixel by pixel: from [1, C, n, W] to one tensor [..., n, W].
            fill: what stands where the network saw nothing (outside a crop).

        Returns:
            [..., H, W] on the CPU.
        """
        (top, bottom, down), (left, right, across) = (self._weights(axis, raw.device) for axis in (0, 1))
        rows, columns = (self._inside(axis) for axis in (0, 1))
        parts = []
        for strip in self._strips(raw.shape[0]):
            part = raw[:, top[strip]].lerp(raw[:, bottom[strip]], down[strip, None])
            part = part[..., left].lerp(part[..., right], across)
            parts.append(decode(part[None])[0].cpu())
        value = torch.cat(parts, -2)
        value[..., ~rows, :] = fill
        value[..., ~columns] = fill
        return value

    def _strips(self, channels: int) -> Iterator[slice]:
        rows = max(1, STRIP // (channels * self.size[1]))
        return (slice(start, start + rows) for start in range(0, self.size[0], rows))

    def _centres(self, axis: int) -> Tensor:
        stored = torch.arange(self.size[axis], dtype=torch.float64) + 0.5
        return stored * self.scale[axis] + self.shift[axis]

    def _inside(self, axis: int) -> Tensor:
        centres = self._centres(axis)
        return (centres >= 0) & (centres <= self.seen[axis])

    def _weights(self, axis: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """For each stored row or column the two of the network it lies between, and how far from the first."""
        place = (self._centres(axis) - 0.5).clamp(0, self.seen[axis] - 1)
        first = place.floor().long()
        second = (first + 1).clamp(max=self.seen[axis] - 1)
        return first.to(device), second.to(device), (place - first).float().to(device)
