"""FairGrad."""

from typing import Literal

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.bargaining import Bargaining


class FairGrad(Bargaining):
    """Fair resource allocation (Ban, Ji: Fair Resource Allocation in Multi-Task Learning, ICML 2024).

    The weights w > 0 solve G w = w^(-1/alpha): the rate at which task t improves is w_t^(-1/alpha). alpha = 1 is Nash-MTL,
    towards 0 all tasks weigh 1, large alpha makes all rates equal. Their scale: all losses times k multiply w by
    k^(-2 alpha / (1 + alpha)). Heads are trained with their own loss, as in the official code.

    Without a solution (some convex combination of the gradients vanishes) :attr:`pareto_stationary` is True and the weights are
    those of that combination, sum 1. A task whose gradient is 0 beside the others' gets weight 0 and does not enter the
    equation.

    What differs: solved by Newton's method, not by least squares with a limit on its rounds. The official code also clips the
    shared gradient to norm 1 (``max_norm: 1``). Its alpha is 1 by default; its scripts for QM9, CelebA and MetaWorld take 2.

    Args:
        alpha: of the fairness, from 0.1 to 10.
        max_norm: of the direction, > 0: the weights are brought down until it is kept; None leaves them.
    """

    heads: Literal["weighted", "unweighted"] = "unweighted"

    def __init__(self, alpha: float = 1.0, max_norm: float | None = None) -> None:
        if not 0.1 <= alpha <= 10:
            raise ConfigError(f"model.weighting.init_args.alpha is {alpha}, expected 0.1 to 10")
        super().__init__(alpha, max_norm)
