"""Several labels per image: everything from counts of known entries over the whole split."""

import torch
from torch import Tensor
from torchmetrics import Metric

from mtl_lightning.metrics import calibration
from mtl_lightning.metrics.auroc import BINS, auroc, histogram
from mtl_lightning.metrics.decisions import positive_f1


def table_scores(table: Tensor) -> dict[str, Tensor]:
    """What follows from the decisions alone.

    Args:
        table: counts [2, 2, L] of at least one entry: truth, decision, label.

    Returns:
        ``accuracy`` of all known entries; ``f1``, the mean over the labels that are in the truth or predicted, left out where
        there is none.
    """
    results = {"accuracy": ((table[0, 0] + table[1, 1]).sum().double() / table.sum()).float()}
    f1 = positive_f1(table).nanmean().float()
    return results if f1.isnan() else results | {"f1": f1}


class MultiLabelScores(Metric):
    """Accuracy, F1, area under the ROC curve and calibration over the known entries of a split.

    The state is counts and sums, whatever the split's size; they add up over batches and ranks.

    Args:
        labels: the number of labels.
        keep_histogram: give the histogram of scores back, for thresholds to be chosen from.
    """

    full_state_update = False
    table: Tensor
    scores: Tensor
    calibration: Tensor

    def __init__(self, labels: int, keep_histogram: bool = False) -> None:
        super().__init__()
        self.keep_histogram = keep_histogram
        self.add_state("table", torch.zeros(2, 2, labels, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("scores", torch.zeros(2, labels, BINS, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("calibration", torch.zeros(3, calibration.BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, decided: Tensor | None = None) -> None:
        """Count entries.

        Args:
            prediction: logits [N, L].
            target: 0, 1 or, where not known, NaN [N, L].
            decided: bool [N, L], which labels are taken to hold; None takes those with a probability of at least one half.
        """
        decided = prediction >= 0 if decided is None else decided
        self.table += torch.stack(
            [torch.stack([((target == truth) & (decided == guess)).sum(0) for guess in (False, True)]) for truth in (0, 1)]
        )
        self.scores += histogram(prediction, target)
        known = ~target.isnan()
        self.calibration += calibration.reliability(prediction[known].double().sigmoid(), target[known] == 1)

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``accuracy`` of all known entries; ``f1``, the mean over the labels that are in the truth or predicted; ``auroc``,
            the mean over the labels with a positive and a negative; ``ece``, the expected calibration error of all known
            entries' probabilities, and ``reliability`` [3, 15], what it is computed from; ``histogram`` of scores where it is
            kept; ``count`` of known entries. A mean over no label is left out, and without a known entry there is ``count``
            alone.
        """
        count = self.table.sum()
        if not count:
            return {"count": count}
        results = table_scores(self.table)
        area = auroc(self.scores).nanmean()
        if not area.isnan():
            results["auroc"] = area
        results |= {"ece": calibration.calibration_error(self.calibration), "reliability": self.calibration}
        return results | ({"histogram": self.scores} if self.keep_histogram else {}) | {"count": count}
