"""Semantic segmentation: everything from one confusion matrix over the whole split."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def iou_key(name: str) -> str:
    """The metric's key for a class: ``iou_`` and the name with every character that no identifier may hold as ``_``."""
    return "iou_" + re.sub(r"\W", "_", name)


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class.

    Args:
        confusion: [C, C] pixel counts, rows are the truth and columns the prediction.

    Returns:
        [C] float64 in 0..1; NaN for a class that is neither in the truth nor predicted.
    """
    confusion = confusion.double()
    hit = confusion.diagonal()
    return hit / (confusion.sum(0) + confusion.sum(1) - hit)


def confusion_scores(confusion: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """What :meth:`SegmentationScores.compute` returns.

    Args:
        confusion: [C, C] counts of at least one pixel, the truth as rows.
        names: the classes.
    """
    scores = class_iou(confusion)
    seen = ~scores.isnan()
    results = {
        "miou": scores[seen].mean().float(),
        "pixel_accuracy": (confusion.diagonal().sum().double() / confusion.sum()).float(),
    }
    return results | {iou_key(name): scores[row].float() for row, name in enumerate(names) if seen[row]}


class SegmentationScores(Metric):
    """Mean and per-class intersection over union and pixel accuracy, over all labelled pixels of a split.

    The state is one [C, C] matrix of counts, whatever the split's size; counts add up over batches and ranks.

    Args:
        names: the classes in the order of their indices.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        size = len(self.names)
        self.add_state("confusion", torch.zeros(size, size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count pixels.

        Args:
            prediction: class indices [N].
            target: class indices [N], labelled pixels only.
        """
        size = len(self.names)
        pairs = torch.bincount(target * size + prediction, minlength=size * size)
        self.confusion += pairs.view(size, size)

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``miou`` (mean over the classes that are in the truth or predicted), ``pixel_accuracy`` and ``iou_<class>`` of
            those classes, all in 0..1; nothing if there was no pixel.
        """
        return confusion_scores(self.confusion, self.names) if self.confusion.any() else {}
