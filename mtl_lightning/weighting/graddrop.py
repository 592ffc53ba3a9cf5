"""Gradient sign dropout."""

from typing import Final

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting

CHUNK: Final = 2**18
"""How many columns of the Jacobian are masked at a time: what is needed beside it stays small."""


class GradDrop(GradientWeighting):
    """Gradient sign dropout (Chen et al.: Just Pick a Sign, NeurIPS 2020).

    For each element, P = (1 + sum g / sum |g|) / 2 is the purity of its sign over the tasks; with a uniform draw U the positive
    gradients stay where P > U, and the negative ones elsewhere. A gradient that is dropped keeps the share ``leak``. Weights
    are 1 each: the step is the sum of what stays. Heads are trained with the unweighted losses.

    The paper masks the gradients at a layer's activations, by their signs times the activations', summed over the batch; this
    masks those over the shared parameters, as the method is mostly compared. The draws depend on (seed, step) only, so that
    they are the same on all ranks and after a resume; a GPU draws other numbers than a CPU. No memory over the parameters.

    Args:
        leak: what a dropped gradient keeps, 0 to 1; 1 is the plain sum.
        seed: of the draws.
    """

    needs_rows = True
    step: Tensor

    def __init__(self, leak: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= leak <= 1:
            raise ConfigError(f"model.weighting.init_args.leak is {leak}, expected 0 to 1")
        self.leak = leak
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def rows(self, jacobian: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """Mask, in place."""
        generator = torch.Generator(jacobian.device).manual_seed((self.seed * 1_000_003 + int(self.step)) % 2**63)
        if self.training:
            self.step += 1
        for start in range(0, jacobian.shape[1], CHUNK):
            part = jacobian[:, start : start + CHUNK]
            purity = (part.sum(0) / part.abs().sum(0) + 1) / 2  # not a number where all are 0, which stay 0 either way
            draw = torch.rand(part.shape[1], generator=generator, device=part.device, dtype=part.dtype)
            stays = (part > 0) == (purity > draw)
            part.mul_(stays if self.leak == 0 else self.leak + (1 - self.leak) * stays.to(part.dtype))
        return jacobian

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """1 each."""
        return torch.ones_like(gramian[0])
