"""The area under the ROC curve from histograms, so that its memory does not grow with the split."""

import torch
from torch import Tensor

BINS, REACH = 2048, 7.0
"""Bins are even in asinh(log-odds) within ±REACH: 0.007 wide around 0, 0.07 at log-odds of 10, and up to 548 none is lost."""


def histogram(log_odds: Tensor, truth: Tensor) -> Tensor:
    """Count the scores of negatives and positives, column by column.

    The bins follow log-odds and not probability: of 100 classes most probabilities of a rare one are below 0.01, and even bins
    in 0..1 would call them all equal.

    Args:
        log_odds: [N, C], any real number; NaN counts as 0.
        truth: [N, C], 1 positive, 0 negative, anything else (NaN too) is left out.

    Returns:
        int64 counts [2, C, BINS], negatives first.
    """
    columns = log_odds.shape[1]
    place = (log_odds.nan_to_num(0.0).asinh().clamp(-REACH, REACH) + REACH) * (BINS / (2 * REACH))
    index = (place.long().clamp_max(BINS - 1) + torch.arange(columns, device=place.device) * BINS).flatten()
    counts = index.new_zeros(2, columns * BINS)
    for sign in (0, 1):
        counts[sign].scatter_add_(0, index, (truth == sign).flatten().long())
    return counts.view(2, columns, BINS)


def edges() -> Tensor:
    """The log-odds between bins, float64 [BINS + 1]; the middle one is 0. Bin i begins at edge i."""
    return torch.linspace(-REACH, REACH, BINS + 1, dtype=torch.float64).sinh()


def auroc(counts: Tensor) -> Tensor:
    """The area under each column's ROC curve: how often a positive is scored above a negative, equal bins counting half.

    Args:
        counts: [2, C, BINS] as :func:`histogram` gives them, added up over batches.

    Returns:
        [C] float32 in 0..1; NaN for a column without a positive or without a negative.
    """
    negatives, positives = counts
    # Twice the negatives below plus those in the same bin: integers, so the sum is exact.
    beaten = 2 * negatives.cumsum(-1) - negatives
    pairs = negatives.sum(-1) * positives.sum(-1)
    area: Tensor = (positives * beaten).sum(-1).float() / (2 * pairs).float()
    return area
