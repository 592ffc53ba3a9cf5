"""One grade per image: everything from one confusion matrix over the whole split."""

import torch
from torch import Tensor
from torchmetrics import Metric


def quadratic_kappa(confusion: Tensor) -> Tensor:
    """Agreement beyond chance, a disagreement weighing the square of its distance in grades.

    J. Cohen, "Weighted kappa", Psychological Bulletin 1968.

    Args:
        confusion: counts [K, K], the truth as rows.

    Returns:
        1 for perfect agreement, 0 for chance, negative below it; NaN where truth and prediction are one and the same grade
        throughout. A float64 scalar.
    """
    counts = confusion.double()
    grades = torch.arange(len(counts), device=counts.device, dtype=torch.float64)
    weights = (grades[:, None] - grades).square()
    expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / counts.sum()
    return 1 - (weights * counts).sum() / (weights * expected).sum()


class OrdinalScores(Metric):
    """Accuracy, mean absolute error in grades and quadratic weighted kappa of a split.

    The state is counts, whatever the split's size; they add up over batches and ranks.

    Args:
        grades: how many there are.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, grades: int) -> None:
        super().__init__()
        self.add_state("confusion", torch.zeros(grades, grades, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count images.

        Args:
            prediction: predicted grades [N], int64.
            target: true grades [N], int64.
        """
        size = len(self.confusion)
        self.confusion += torch.bincount(target * size + prediction, minlength=size * size).view(size, size)

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``mae`` in grades, ``accuracy``, ``kappa`` (left out where truth and prediction are one and the same grade
            throughout), ``confusion`` [K, K] with the truth as rows, ``count`` of images. Without an image ``count`` alone.
        """
        count = self.confusion.sum()
        if not count:
            return {"count": count}
        grades = torch.arange(len(self.confusion), device=count.device)
        distance = (grades[:, None] - grades).abs()
        results = {
            "mae": ((distance * self.confusion).sum().double() / count).float(),
            "accuracy": (self.confusion.diagonal().sum().double() / count).float(),
        }
        kappa = quadratic_kappa(self.confusion)
        if not kappa.isnan():
            results["kappa"] = kappa.float()
        return results | {"confusion": self.confusion, "count": count}
