"""The geometric mean of the losses."""

from torch import Tensor

from mtl_lightning.weighting.base import LossWeighting


class GLS(LossWeighting):
    """Geometric loss strategy (Chennupati et al.: MultiNet++, CVPR Workshops 2019).

    The objective is the geometric mean M = (L_1 * ... * L_P)^(1/P) of the P present losses, computed as exp(mean log L), so
    that no product overflows. Weights are M / (P * L_t): the scale of a mean, and of sum 1 where all losses are equal.
    Multiplying a loss by a constant, a task's ``weight`` as well, leaves the direction alone and changes the length of all.
    Every loss must be more than 0. No options, no state. The paper's further factor for tasks in focus is left out.
    """

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """exp(mean log L - log L) / P."""
        self.need_positive(losses, present)
        logarithms = losses.log()
        return (logarithms.mean() - logarithms).exp() / len(losses)
