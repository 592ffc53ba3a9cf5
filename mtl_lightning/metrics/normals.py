"""Surface normals: angular errors over all labelled pixels of a split."""

import torch
from torch import Tensor
from torchmetrics import Metric

BIN = 0.05
"""Width in degrees of the histogram the median is read from."""
LIMITS = (11.25, 22.5, 30.0)


def angle(first: Tensor, second: Tensor) -> Tensor:
    """Angle between unit vectors in degrees, exact also near 0 and 180 where an arc cosine loses half its digits.

    Args:
        first: [N, 3].
        second: [N, 3].

    Returns:
        [N] in 0..180.
    """
    return torch.rad2deg(2 * torch.atan2((first - second).norm(dim=1), (first + second).norm(dim=1)))


class NormalScores(Metric):
    """Angular errors as in D. F. Fouhey, A. Gupta, M. Hebert (ICCV 2013, "Data-driven 3D primitives").

    The median comes from a histogram of fixed size and not from a list of all pixels: it is within 0.025 degrees of the
    (lower) median of the pixels' errors, and 0 if that is below 0.025 degrees.
    """

    full_state_update = False
    total: Tensor
    histogram: Tensor
    within: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("histogram", torch.zeros(round(180 / BIN) + 1, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("within", torch.zeros(len(LIMITS), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add pixels.

        Args:
            prediction: unit vectors [N, 3].
            target: unit vectors [N, 3], labelled pixels only.
        """
        error = angle(prediction.double(), target.double())
        self.total += error.sum()
        # Bins are centred on multiples of their width, so that a perfect prediction has median 0. A prediction that is not a
        # number shows in the mean; here it must only not become an index.
        bins = (error.nan_to_num(nan=180.0) / BIN).round().long()
        self.histogram += torch.bincount(bins, minlength=len(self.histogram))
        self.within += torch.stack([(error < limit).sum() for limit in LIMITS])

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``mean`` and ``median`` in degrees, ``within_11_25``, ``within_22_5`` and ``within_30`` (shares of pixels with a
            smaller error); nothing if there was no pixel.
        """
        count = self.histogram.sum()
        if not count:
            return {}
        middle = torch.searchsorted(self.histogram.cumsum(0), (count + 1) // 2)
        shares = (self.within.double() / count).float()
        return {
            "mean": (self.total / count).float(),
            "median": (middle.double() * BIN).float(),
            "within_11_25": shares[0],
            "within_22_5": shares[1],
            "within_30": shares[2],
        }
