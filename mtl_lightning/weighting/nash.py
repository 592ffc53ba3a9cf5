"""Nash-MTL."""

from typing import Literal

from mtl_lightning.weighting.bargaining import Bargaining


class NashMTL(Bargaining):
    """The Nash bargaining solution (Navon et al.: Multi-Task Learning as a Bargaining Game, ICML 2022).

    The weights a > 0 solve G a = 1 / a: no direction of the same norm has a larger product of the tasks' improvements. Their
    scale: a_t is inverse to the norm of task t's gradient, so that the scale of a loss does not matter, and the direction J^T a
    always has norm sqrt(P) for P tasks; ``max_norm`` brings the weights down until it has that norm, 1 by default as in the
    official code. Heads are trained with the weighted loss.

    No solution exists where some convex combination of the gradients vanishes, as for two opposite ones: then
    :attr:`pareto_stationary` is True and the weights are those of that combination, sum 1. A task whose gradient is 0
    beside the others' gets weight 0 and does not enter the equation.

    What differs: solved exactly by Newton's method, |a * (G a) - 1| <= 1e-9 where the smallest eigenvalue of the unit-diagonal
    Gramian is at least 1e-6, not by a fixed number of convex-concave rounds; the official code divides G by its Frobenius norm
    before (which multiplies a by the root of that norm) and its ``max_norm`` clips the shared gradient alone, ours the weights
    and so the heads' share too.

    Args:
        max_norm: of the direction, > 0; None leaves sqrt(P).
    """

    heads: Literal["weighted", "unweighted"] = "weighted"

    def __init__(self, max_norm: float | None = 1.0) -> None:
        super().__init__(1.0, max_norm)
