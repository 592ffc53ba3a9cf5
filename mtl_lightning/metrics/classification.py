"""One class per image: everything from one confusion matrix and one score histogram over the whole split."""

import torch
from torch import Tensor
from torchmetrics import Metric

from mtl_lightning.metrics.auroc import BINS, auroc, histogram


def class_f1(hits: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """The F1 score of each class.

    Args:
        hits: [C] counts of right predictions of the class.
        predicted: [C] how often it was predicted.
        true: [C] how often it is the truth.

    Returns:
        [C] float64 in 0..1; NaN for a class that is neither predicted nor in the truth.
    """
    return 2 * hits.double() / (predicted + true)


class ClassificationScores(Metric):
    """Accuracy, F1, area under the ROC curve and confusion matrix of a split.

    The state is counts, whatever the split's size; they add up over batches and ranks.

    Args:
        classes: the number of classes.
    """

    full_state_update = False
    confusion: Tensor
    scores: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("scores", torch.zeros(2, classes, BINS, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count images.

        Args:
            prediction: logits [N, C].
            target: class indices [N], labelled images only.
        """
        size = len(self.confusion)
        pairs = torch.bincount(target * size + prediction.argmax(1), minlength=size * size)
        self.confusion += pairs.view(size, size)
        # In float64, where a probability next to 1 can still be told from 1.
        log_probability = prediction.double().log_softmax(1)
        log_odds = log_probability - (-log_probability.expm1()).log()
        self.scores += histogram(log_odds, torch.nn.functional.one_hot(target, size))

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``accuracy`` of all images; ``f1``, the mean over the classes in the truth or predicted; ``auroc``, each class
            against the rest, the mean over the classes in the truth (left out while all images are of one class);
            ``confusion``, counts [C, C] with the truth as rows; ``count`` of images. Without an image ``count`` alone.
        """
        count = self.confusion.sum()
        if not count:
            return {"count": count}
        hits = self.confusion.diagonal()
        results = {
            "accuracy": (hits.sum().double() / count).float(),
            "f1": class_f1(hits, self.confusion.sum(0), self.confusion.sum(1)).nanmean().float(),
        }
        area = auroc(self.scores).nanmean()
        if not area.isnan():
            results["auroc"] = area
        return results | {"confusion": self.confusion, "count": count}
