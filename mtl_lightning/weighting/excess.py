"""Excess risks."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting, TaskInfo

CHUNK: Final = 2**18
"""How many elements of a gradient are taken at a time: what is needed beside it stays small."""


class ExcessMTL(GradientWeighting):
    """Excess risks (He et al.: Robust Multi-Task Learning with Excess Risks, ICML 2024).

    How far a task is from convergence is e_t = g_t^T diag(sqrt(s_t))^-1 g_t, where s_t is the sum of its squared gradients so
    far. Each step w_t is multiplied by exp(eta * e_t / e0_t), e0_t being the first e_t, and the weights are scaled to the sum P
    over the P present tasks: the mean weight is 1. Heads are trained with the weighted losses.

    Ours: elements whose gradient was never anything but 0 count 0 (the official code adds 1e-7 under the root), a task whose
    gradient is exactly 0 when first seen gets its e0 at the next, and the weights are kept as logarithms, so that they neither
    overflow nor vanish for good. An absent task's s, e0 and weight rest; what the present ones have together stays.

    Memory: one number a task and shared parameter, in every checkpoint.

    Args:
        eta: step of the weights, more than 0.
    """

    needs_rows = True
    heads = "weighted"
    logits: Tensor
    first: Tensor
    squares: Tensor

    def __init__(self, eta: float = 0.01) -> None:
        super().__init__()
        if not eta > 0:
            raise ConfigError(f"model.weighting.init_args.eta is {eta}, expected > 0")
        self.eta = eta

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Even weights; no first excess yet."""
        self.register_buffer("logits", torch.zeros(len(tasks), dtype=torch.float64))
        self.register_buffer("first", torch.full((len(tasks),), torch.nan, dtype=torch.float64))

    def allocate(self, size: int, dtype: torch.dtype) -> None:
        """The sums of squares, [T, size]."""
        self.register_buffer("squares", torch.zeros(len(self.logits), size, dtype=dtype, device=self.logits.device))

    def rows(self, jacobian: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """Measure the excess and move the weights; the gradients stay."""
        if not self.training:
            return jacobian
        excess = torch.stack(
            [self._excess(row, self.squares[task]) for row, task in zip(jacobian, present.tolist(), strict=True)]
        ).cpu()
        first, before = self.first.cpu()[present], self.logits.cpu()[present]
        after = before + self.eta * torch.where(first.isnan(), 0.0, excess / first)
        after -= after.logsumexp(0) - before.logsumexp(0)
        positions = present.to(self.logits.device)
        self.logits[positions] = after.to(self.logits)
        self.first[positions] = torch.where(first.isnan() & (excess > 0), excess, first).to(self.first)
        return jacobian

    @staticmethod
    def _excess(gradient: Tensor, squares: Tensor) -> Tensor:
        """Add to the sum of squares, and the excess with it: float64."""
        excess = torch.zeros((), dtype=torch.float64, device=gradient.device)
        for start in range(0, len(gradient), CHUNK):
            square = gradient[start : start + CHUNK].square()
            total = squares[start : start + CHUNK].add_(square)
            excess += torch.where(total > 0, square * total.rsqrt(), 0.0).sum(dtype=torch.float64)
        return excess

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """The weights that :meth:`rows` left."""
        logits = self.logits.to(gramian)
        return len(gramian) * torch.softmax(logits if present is None else logits[present], 0)
