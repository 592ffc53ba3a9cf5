"""Depth: the errors and threshold accuracies of Eigen et al., over all labelled pixels of a split."""

import torch
from torch import Tensor
from torchmetrics import Metric

RATIO = 1.25


class DepthScores(Metric):
    """Depth errors (D. Eigen, C. Puhrsch, R. Fergus, NeurIPS 2014, "Depth map prediction from a single image").

    Every pixel of the split weighs the same (some benchmarks average per image first). Sums are kept in float64 and add up
    over batches and ranks.
    """

    full_state_update = False
    sums: Tensor
    within: Tensor
    pixels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("within", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add pixels.

        Args:
            prediction: depth [N], >= 0.
            target: depth [N], > 0, labelled pixels only.
        """
        prediction, target = prediction.double(), target.double()
        error = (prediction - target).abs()
        ratio = torch.maximum(prediction / target, target / prediction)
        self.sums += torch.stack([error.sum(), (error / target).sum(), error.square().sum()])
        self.within += torch.stack([(ratio < RATIO**power).sum() for power in (1, 2, 3)])
        self.pixels += target.numel()

    def compute(self) -> dict[str, Tensor]:
        """The scores.

        Returns:
            ``abs`` (mean absolute error) and ``rmse`` in the unit of the labels, ``rel`` (mean absolute error over the true
            depth), ``delta1`` to ``delta3`` (share of pixels with max(p/t, t/p) below 1.25, 1.25², 1.25³); nothing if
            there was no pixel.
        """
        if not self.pixels:
            return {}
        absolute, relative, squared = (self.sums / self.pixels).unbind()
        shares = (self.within.double() / self.pixels).float()
        return {
            "abs": absolute.float(),
            "rel": relative.float(),
            "rmse": squared.sqrt().float(),
            "delta1": shares[0],
            "delta2": shares[1],
            "delta3": shares[2],
        }
