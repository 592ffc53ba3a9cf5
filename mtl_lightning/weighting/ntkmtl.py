"""Weights from the neural tangent kernel."""

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting.base import GradientWeighting


class NTKMTL(GradientWeighting):
    """Neural tangent kernel (Qin, Wang, Liao, Yan: NTKMTL, Mitigating Task Imbalance, NeurIPS 2025).

    The batch is cut into n blocks; l_t is the largest eigenvalue of the n x n Gramian of the gradients of task t's loss on the
    blocks: how fast the task converges. Weights are (sum_u l_u / l_t)^exponent, which are not bounded: with even l they are
    T^exponent each. With one block l_t is the squared norm of the gradient, and with exponent .5 every task then pulls with the
    same norm. Heads are trained with the unweighted losses.

    The weights are the official code's; the paper's, with the mean for the sum, are smaller by T^exponent; for one block that
    code multiplies the step by T on top, and clips it to norm 1. Ours: sums are over the present tasks, and a task whose gradient
    is exactly 0 counts as one with the mean l of the others.

    Args:
        exponent: of the ratio, 0 or more; the official code recommends up to .75.
        blocks: n, 1 or more. Each costs one backward more a task over parameters, and none at the features.
    """

    def __init__(self, exponent: float = 0.5, blocks: int = 1) -> None:
        super().__init__()
        if not exponent >= 0:
            raise ConfigError(f"model.weighting.init_args.exponent is {exponent}, expected 0 or more")
        if not blocks >= 1:
            raise ConfigError(f"model.weighting.init_args.blocks is {blocks}, expected 1 or more")
        self.exponent = exponent
        self.blocks = blocks
        self._largest: Tensor | None = None

    def see_blocks(self, gramians: Tensor) -> None:
        """Take the largest eigenvalues."""
        self._largest = torch.linalg.eigvalsh(gramians)[:, -1].clamp(min=0)

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """(sum l / l_t)^exponent."""
        speeds = gramian.diagonal() if self.blocks == 1 else self._largest
        if speeds is None or len(speeds) != len(gramian):
            raise TrainingError(f"model.weighting NTKMTL with blocks: {self.blocks} was not shown the blocks of this batch")
        self._largest = None
        positive = speeds > 0
        mean = speeds[positive].mean() if positive.any() else speeds.new_ones(())
        speeds = torch.where(positive, speeds / mean, 1.0)  # the mean as the unit: sums neither overflow nor vanish
        return (speeds.sum() / speeds) ** self.exponent


class NTKMTLSR(NTKMTL):
    """NTKMTL from shared representations (the same paper's NTKMTL-SR): to be run with gradients at the features.

    :class:`NTKMTL` with four blocks, whose gradients at the features come with those of the whole batch, so that it costs as
    much as any method at the features. Rows of one block are no features of another: the Gramian of the blocks is diagonal, and
    l_t the largest squared norm (unless the head mixes rows). Heads are trained with the weighted losses: the step is one
    backward of the weighted sum.

    Args:
        exponent: of the ratio, 0 or more.
        blocks: n, 1 or more; the official code takes 1 on dense tasks, 4 elsewhere.
    """

    heads = "weighted"

    def __init__(self, exponent: float = 0.5, blocks: int = 4) -> None:
        super().__init__(exponent, blocks)
