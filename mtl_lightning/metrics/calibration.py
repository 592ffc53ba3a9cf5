"""How far probabilities can be believed: confidence beside frequency, in bins."""

import torch
from torch import Tensor

BINS = 15


def reliability(probability: Tensor, hit: Tensor) -> Tensor:
    """Count predictions by their probability, in ``BINS`` even bins (l, u] of 0..1; adds up over batches and ranks.

    Args:
        probability: float64 [N] of what was predicted; one that is no number falls into the first bin and makes its sum none.
        hit: bool [N], whether it came true.

    Returns:
        float64 [3, BINS]: predictions, those that came true, the sum of their probabilities.
    """
    place = (probability.nan_to_num(0.0) * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    rows = torch.stack([torch.ones_like(probability), hit.to(probability), probability])
    return rows.new_zeros(3, BINS).index_add_(1, place, rows)


def calibration_error(table: Tensor) -> Tensor:
    """The mean gap between probability and frequency over the bins, each counting by its predictions.

    The expected calibration error of C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger (ICML 2017, "On calibration of modern neural
    networks").

    Args:
        table: [3, BINS] as :func:`reliability` gives it, added up over batches.

    Returns:
        Scalar float32 in 0..1.
    """
    count, hits, probability = table
    error: Tensor = (hits - probability).abs().sum() / count.sum()
    return error.float()
