"""Numbers per image: errors and explained variance from sums over the known entries of a split."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class RegressionScores(Metric):
    """Mean absolute error, root mean squared error and coefficient of determination over the known entries of a split.

    Sums are kept in float64 and add up over batches and ranks.

    Args:
        centre: about the mean of each component, taken off before squares are summed: without it the variance of numbers far
            from 0 (years, say) would be the small difference of two large sums.
    """

    full_state_update = False
    centre: Tensor
    sums: Tensor
    known: Tensor

    def __init__(self, centre: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("centre", torch.tensor(list(centre), dtype=torch.float64), persistent=False)
        # Absolute errors, squared errors, centred targets, their squares.
        self.add_state("sums", torch.zeros(4, len(centre), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("known", torch.zeros(len(centre), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add rows.

        Args:
            prediction: [N, D] in real units.
            target: [N, D] in real units, NaN where not known.
        """
        known = ~target.isnan()
        error = prediction.double() - target.double()
        offset = target.double() - self.centre
        parts = torch.stack([error.abs(), error.square(), offset, offset.square()])
        self.sums += parts.where(known, 0.0).sum(1)
        self.known += known.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``mae`` and ``rmse`` over all known entries, in real units; ``r2``, 1 - squared error / variance, the mean over the
            components with at least two different known values (left out where there is none); ``count`` of known entries.
            Without a known entry ``count`` alone.
        """
        count = self.known.sum()
        if not count:
            return {"count": count}
        absolute, squared, offset, offset_squared = self.sums
        results = {
            "mae": (absolute.sum() / count).float(),
            "rmse": (squared.sum() / count).sqrt().float(),
        }
        spread = offset_squared - offset.square() / self.known.clamp_min(1)
        # What is left of a constant component is rounding.
        varied = spread > 1e-10 * offset_squared
        if varied.any():
            results["r2"] = (1 - squared[varied] / spread[varied]).mean().float()
        return results | {"count": count}
