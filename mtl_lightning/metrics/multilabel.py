"""Several labels per image: everything from counts of known entries over the whole split."""

import torch
from torch import Tensor
from torchmetrics import Metric

from mtl_lightning.metrics.auroc import BINS, auroc, histogram
from mtl_lightning.metrics.classification import class_f1


class MultiLabelScores(Metric):
    """Accuracy, F1 and area under the ROC curve over the known entries of a split.

    A label is predicted where its probability is at least one half. The state is counts, whatever the split's size; they add
    up over batches and ranks.

    Args:
        labels: the number of labels.
    """

    full_state_update = False
    table: Tensor
    scores: Tensor

    def __init__(self, labels: int) -> None:
        super().__init__()
        # [truth, predicted, label]
        self.add_state("table", torch.zeros(2, 2, labels, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("scores", torch.zeros(2, labels, BINS, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count entries.

        Args:
            prediction: logits [N, L].
            target: 0, 1 or, where not known, NaN [N, L].
        """
        positive = prediction >= 0
        self.table += torch.stack(
            [torch.stack([((target == truth) & (positive == guess)).sum(0) for guess in (False, True)]) for truth in (0, 1)]
        )
        self.scores += histogram(prediction, target)

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``accuracy`` of all known entries; ``f1``, the mean over the labels that are in the truth or predicted; ``auroc``,
            the mean over the labels with a positive and a negative; ``count`` of known entries. A mean over no label is left
            out, and without a known entry there is ``count`` alone.
        """
        count = self.table.sum()
        if not count:
            return {"count": count}
        hits = self.table[1, 1]
        results = {"accuracy": ((hits + self.table[0, 0]).sum().double() / count).float()}
        means = {
            "f1": class_f1(hits, self.table[:, 1].sum(0), self.table[1].sum(0)).nanmean().float(),
            "auroc": auroc(self.scores).nanmean(),
        }
        results |= {key: value for key, value in means.items() if not value.isnan()}
        return results | {"count": count}
