"""The soft Dice loss."""

import torch
from torch import Tensor

from mtl_lightning.tasks.base import Term


def dice_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Term:
    """Soft Dice loss per image (F. Milletari, N. Navab, S.-A. Ahmadi, 3DV 2016, "V-Net").

    1 - the mean Dice coefficient 2 * sum(p * y) / (sum(p) + sum(y)) over the classes that the image's truth contains, p being
    the softmax. A class that is absent has no term of its own, where one wrong pixel would cost as much as the whole class:
    pixels wrongly given to it are missing from the classes that are there. Ours has no squares in the denominator.

    Args:
        prediction: logits [B, C, H, W].
        target: class indices [B, H, W].
        valid: bool [B, H, W], the labelled pixels.

    Returns:
        The sum over the images with a labelled pixel, and their number.
    """
    valid = valid.unsqueeze(1)
    probability = torch.where(valid, prediction.softmax(1), 0.0)
    classes = torch.arange(prediction.shape[1], device=target.device).view(1, -1, 1, 1)
    truth = (target.unsqueeze(1) == classes) & valid
    size = truth.sum((2, 3))
    overlap = torch.where(truth, probability, 0.0).sum((2, 3))
    dice = 2 * overlap / (probability.sum((2, 3)) + size).clamp_min(1.0)
    present = size > 0
    images = present.any(1)
    mean = torch.where(present, dice, 0.0).sum(1) / present.sum(1).clamp_min(1)
    return Term(torch.where(images, 1 - mean, 0.0).sum(), images.sum().float())
