"""One class per image: everything from one confusion matrix and two histograms over the whole split."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from mtl_lightning.metrics import calibration
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


def confusion_scores(confusion: Tensor) -> dict[str, Tensor]:
    """What follows from the decisions alone.

    Args:
        confusion: counts [C, C] of at least one image, the truth as rows.

    Returns:
        ``accuracy`` of all images; ``f1``, the mean over the classes in the truth or predicted; ``confusion``.
    """
    hits = confusion.diagonal()
    return {
        "accuracy": (hits.sum().double() / confusion.sum()).float(),
        "f1": class_f1(hits, confusion.sum(0), confusion.sum(1)).nanmean().float(),
        "confusion": confusion,
    }


class ClassificationScores(Metric):
    """Accuracy, F1, area under the ROC curve, calibration and confusion matrix of a split.

    The state is counts and sums, whatever the split's size; they add up over batches and ranks.

    Args:
        classes: the number of classes.
        top_k: also count how often the truth is among so many most probable classes.
        keep_histogram: give the histogram of scores back, for thresholds to be chosen from.
    """

    full_state_update = False
    confusion: Tensor
    scores: Tensor
    calibration: Tensor
    near: Tensor

    def __init__(self, classes: int, top_k: Sequence[int] = (), keep_histogram: bool = False) -> None:
        super().__init__()
        self.top_k = list(top_k)
        self.keep_histogram = keep_histogram
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("scores", torch.zeros(2, classes, BINS, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("calibration", torch.zeros(3, calibration.BINS, dtype=torch.float64), dist_reduce_fx="sum")
        if self.top_k:
            self.add_state("near", torch.zeros(len(self.top_k), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, decided: Tensor | None = None) -> None:
        """Count images.

        Args:
            prediction: logits [N, C].
            target: class indices [N], labelled images only.
            decided: the classes decided for [N]; None takes the most probable ones.
        """
        size, likeliest = len(self.confusion), prediction.argmax(1)
        pairs = torch.bincount(target * size + (likeliest if decided is None else decided), minlength=size * size)
        self.confusion += pairs.view(size, size)
        # In float64, where a probability next to 1 can still be told from 1.
        log_probability = prediction.double().log_softmax(1)
        log_odds = log_probability - (-log_probability.expm1()).log()
        self.scores += histogram(log_odds, torch.nn.functional.one_hot(target, size))
        self.calibration += calibration.reliability(log_probability.amax(1).exp(), likeliest == target)
        if self.top_k:
            among = prediction.topk(max(self.top_k), 1).indices == target.unsqueeze(1)
            self.near += torch.stack([among[:, :k].any(1).sum() for k in self.top_k])

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``accuracy`` of all images; ``accuracy_top<k>``; ``f1``, the mean over the classes in the truth or predicted;
            ``auroc``, each class against the rest, the mean over the classes in the truth (left out while all images are of
            one class); ``ece``, the expected calibration error of the most probable class, and ``reliability`` [3, 15], what
            it is computed from; ``confusion``, counts [C, C] with the truth as rows; ``histogram`` of scores where it is
            kept; ``count`` of images. Without an image ``count`` alone.
        """
        count = self.confusion.sum()
        if not count:
            return {"count": count}
        results = confusion_scores(self.confusion)
        for position, k in enumerate(self.top_k):
            results[f"accuracy_top{k}"] = (self.near[position].double() / count).float()
        area = auroc(self.scores).nanmean()
        if not area.isnan():
            results["auroc"] = area
        results |= {"ece": calibration.calibration_error(self.calibration), "reliability": self.calibration}
        return results | ({"histogram": self.scores} if self.keep_histogram else {}) | {"count": count}
