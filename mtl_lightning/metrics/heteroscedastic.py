"""Numbers with an uncertainty each: how likely the truth was held to be, and how often it lies where it was expected."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtl_lightning.metrics.regression import RegressionScores

NOMINAL = 0.9
"""The share of true numbers that should lie in the interval."""
REACH = 1.6448536269514722
"""Standard deviations from the mean within which this share of a normal distribution lies."""


class HeteroscedasticScores(RegressionScores):
    """The scores of numbers, and of the normal distributions they are predicted as; sums add up over batches and ranks.

    Args:
        centre: about the mean of each component, see :class:`~mtl_lightning.metrics.regression.RegressionScores`.
    """

    likelihood: Tensor
    inside: Tensor

    def __init__(self, centre: Sequence[float]) -> None:
        super().__init__(centre)
        self.add_state("likelihood", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("inside", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add rows.

        Args:
            prediction: [N, 3, D]: mean and standard deviation in real units, and what one standardised unit is in them.
            target: [N, D] in real units, NaN where not known.
        """
        mean, std, unit = prediction.double().unbind(1)
        super().update(mean, target)
        known = ~target.isnan()
        error = (mean - target.double()) / std
        each = (error.square() + math.log(2 * math.pi)) / 2 + (std / unit).log()
        self.likelihood += each.where(known, 0.0).sum()
        self.inside += (known & (error.abs() <= REACH)).sum()

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            Those of numbers; ``nll``, the mean negative log-likelihood of a known number in standardised units (the logarithm
            of the labels' standard deviation more in real units); ``coverage``, the share of known numbers within the central
            90 % of their distribution. Without a known entry ``count`` alone.
        """
        results = super().compute()
        if not results["count"]:
            return results
        count = results.pop("count")
        shares = {"nll": (self.likelihood / count).float(), "coverage": (self.inside.double() / count).float()}
        return results | shares | {"count": count}
