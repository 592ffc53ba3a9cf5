"""Losses for labels of which some are rare: balanced weights and the focal loss."""

from typing import Literal

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError

Weights = list[float] | Literal["balanced"] | None
"""Given, learnt from the training labels, or none."""
CAP = 100.0
"""Balanced weights of positive entries are at most this and at least one over it."""


def given_weights(key: str, weights: Weights) -> Tensor | None:
    """Configured weights as a tensor; None where there are none or they are yet to be learnt.

    Args:
        key: the configuration key, for the message.
        weights: as configured.

    Raises:
        ConfigError: they are negative, infinite or all 0.
    """
    if weights is None or weights == "balanced":
        return None
    tensor = torch.tensor(weights, dtype=torch.float32)
    if not (tensor.isfinite().all() and (tensor >= 0).all() and tensor.sum() > 0):
        raise ConfigError(f"{key} {weights}: expected numbers >= 0, not all 0, or 'balanced'")
    return tensor


def check_gamma(gamma: float) -> None:
    """Raise :class:`ConfigError` for an exponent that the focal loss cannot have."""
    if not 0 <= gamma < float("inf"):
        raise ConfigError(f"focal_gamma is {gamma}, expected a number >= 0 (0 is the plain cross-entropy)")


def balanced_class_weights(counts: Tensor) -> Tensor:
    """N / (C * n_c), with which every class has the same share of the weight mass of the training labels.

    Args:
        counts: [C] labelled images or pixels of each class. One that has none takes the largest weight of the others, not an
            infinite one.

    Returns:
        float32 [C].
    """
    weights = counts.sum().double() / (len(counts) * counts.double())
    seen = weights.isfinite()
    highest = weights[seen].max() if seen.any() else weights.new_ones(())
    return torch.where(seen, weights, highest).float()


def balanced_pos_weight(positives: Tensor, negatives: Tensor) -> Tensor:
    """Negatives / positives of each label, at least 1 / CAP and at most CAP.

    Args:
        positives: [L] entries that are 1.
        negatives: [L] entries that are 0.

    Returns:
        float32 [L]; 1 for a label of which nothing is known.
    """
    return (negatives.double() / positives.double()).nan_to_num(1.0, posinf=CAP).clamp(1 / CAP, CAP).float()


def focal(cross_entropy: Tensor, gamma: float) -> Tensor:
    """The focal loss (T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár, ICCV 2017, "Focal loss for dense object detection").

    -(1 - p)^gamma * log(p), p being the probability of the truth: what is right already counts little. Class weights, the
    paper's alpha, are the caller's. The paper divides by the number of objects; ours divides by what the cross-entropy
    divides by.

    Args:
        cross_entropy: -log(p) of each element, without weights and smoothing.
        gamma: >= 0; 0 gives back the cross-entropy itself.
    """
    if not gamma:
        return cross_entropy
    # Where p is 1 to all digits, a power below 1 has an infinite slope, and infinity times 0 is no number.
    doubt = (-torch.expm1(-cross_entropy)).clamp_min(torch.finfo(cross_entropy.dtype).tiny)
    return doubt.pow(gamma) * cross_entropy
