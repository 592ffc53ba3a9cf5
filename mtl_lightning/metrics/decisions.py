"""What each threshold would decide, read from histograms of scores: nothing that grows with the split is kept."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from mtl_lightning.metrics.auroc import BINS, histogram


def outcomes(counts: Tensor) -> Tensor:
    """How often each threshold decides what.

    Args:
        counts: [2, D, BINS] as :func:`~mtl_lightning.metrics.auroc.histogram` gives them.

    Returns:
        int64 [2, 2, D, BINS + 1]: truth, decision, column, and the bin from which on the decision is yes.
    """
    below = torch.nn.functional.pad(counts.cumsum(-1), (1, 0))
    return torch.stack([below, counts.sum(-1, keepdim=True) - below], 1)


def positive_f1(table: Tensor) -> Tensor:
    """The F1 score of the decision yes.

    Args:
        table: counts [2, 2, ...], truth and decision.

    Returns:
        float64 [...] in 0..1, NaN where yes is neither the truth nor decided.
    """
    return 2 * table[1, 1].double() / (2 * table[1, 1] + table[0, 1] + table[1, 0])


def mean_f1(table: Tensor) -> Tensor:
    """The mean of the F1 scores of no and of yes; arguments and shape as of :func:`positive_f1`."""
    return (positive_f1(table) + positive_f1(table.flip(0, 1))) / 2


def mean_iou(table: Tensor) -> Tensor:
    """The mean intersection over union of no and of yes; arguments and shape as of :func:`positive_f1`."""
    wrong = (table[0, 1] + table[1, 0]).double()
    return (table[0, 0] / (table[0, 0] + wrong) + table[1, 1] / (table[1, 1] + wrong)) / 2


def best_edges(table: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """The bin from which on to decide yes, for each column.

    Args:
        table: [2, 2, D, BINS + 1] as :func:`outcomes` gives it.
        objective: from such counts to what is to be large [D, BINS + 1].

    Returns:
        int64 [D]: the middle of the run of equally good bins that is nearest to the middle of the scale; the middle of the scale
        for a column that lacks one of the two truths.
    """
    middle = BINS // 2
    both = (table.sum(1)[..., 0] > 0).all(0)
    values = objective(table)
    good = values >= values.amax(-1, keepdim=True) - 1e-12
    chosen = torch.full_like(both, middle, dtype=torch.long)
    for column in torch.nonzero(both).flatten().tolist():
        places = torch.nonzero(good[column]).flatten()
        nearest = int((places - middle).abs().argmin())
        # Consecutive places less their ranks are alike.
        runs = places - torch.arange(len(places), device=places.device)
        run = places[runs == runs[nearest]]
        chosen[column] = (run[0] + run[-1]) // 2
    return chosen


class ScoreHistogram(Metric):
    """The histogram of one decision's scores over a split, from which its threshold is chosen."""

    full_state_update = False
    scores: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", torch.zeros(2, 1, BINS, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, log_odds: Tensor, target: Tensor) -> None:
        """Count elements.

        Args:
            log_odds: [N].
            target: 0 or 1 [N].
        """
        self.scores += histogram(log_odds.unsqueeze(1), target.unsqueeze(1))

    def compute(self) -> dict[str, Tensor]:
        """``histogram`` [2, 1, BINS]; nothing if nothing was counted."""
        return {"histogram": self.scores} if self.scores.any() else {}
