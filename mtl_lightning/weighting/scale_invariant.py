"""The sum of log losses."""

from torch import Tensor

from mtl_lightning.weighting.base import LossWeighting


class ScaleInvariant(LossWeighting):
    """Scale-invariant sum: the objective is the sum of log(L_t) over the present tasks.

    A baseline of Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022. Weights are 1 / L_t: a sum that is not
    bounded, and that grows as the losses fall. Multiplying a loss by a constant changes no step. Every loss must be more
    than 0. No options, no state.
    """

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """1 / L."""
        self.need_positive(losses, present)
        return 1 / losses
