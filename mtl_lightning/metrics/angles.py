"""Angles per image: how far predictions are off around the circle."""

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 3600
"""Of the histogram that the median is read from."""


def turned(difference: Tensor, period: float) -> Tensor:
    """The same angle in -period / 2 .. period / 2, the lower end included."""
    return torch.remainder(difference + period / 2, period) - period / 2


class AngleScores(Metric):
    """Absolute errors of angles over the known entries of a split, the shorter way around.

    The median comes from a histogram of fixed size: it is within period / 14400 of the (lower) median of the errors (0.025
    degrees of 360). Sums add up over batches and ranks.

    Args:
        period: in degrees, 180 where opposite directions are the same.
    """

    full_state_update = False
    total: Tensor
    histogram: Tensor

    def __init__(self, period: float) -> None:
        super().__init__()
        self.period = period
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("histogram", torch.zeros(BINS + 1, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add rows.

        Args:
            prediction: degrees [N, D].
            target: degrees [N, D], NaN where not known.
        """
        known = ~target.isnan()
        error = turned(prediction.double()[known] - target.double()[known], self.period).abs()
        self.total += error.sum()
        # A prediction that is not a number shows in the mean; here it must only not become an index.
        bins = (error.nan_to_num(nan=self.period / 2) / self.period * 2 * BINS).round().long()
        self.histogram += torch.bincount(bins, minlength=BINS + 1)

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``mean`` and ``median`` absolute error in degrees, 0 to half the period, and ``count`` of known angles. Without one
            ``count`` alone.
        """
        count = self.histogram.sum()
        if not count:
            return {"count": count}
        middle = torch.searchsorted(self.histogram.cumsum(0), (count + 1) // 2)
        median = middle.double() * (self.period / 2 / BINS)
        return {"mean": (self.total / count).float(), "median": median.float(), "count": count}
