"""Adam on a small vector of a weighting method."""

import math

import torch
from torch import Tensor, nn


class VectorAdam(nn.Module):
    """Adam (Kingma, Ba, ICLR 2015) for one vector of numbers, one a task, of which a step moves some.

    The same numbers as ``torch.optim.Adam`` with one parameter a task, but its state lies in buffers, so that it is in the
    checkpoint of the method that owns it, and entries that are not moved keep value, moments and step count.

    Args:
        size: of the vector.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: times the value, added to the gradient.
    """

    steps: Tensor
    first: Tensor
    second: Tensor

    def __init__(
        self,
        size: int,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.register_buffer("steps", torch.zeros(size, dtype=torch.long))
        self.register_buffer("first", torch.zeros(size))
        self.register_buffer("second", torch.zeros(size))

    @torch.no_grad()
    def step(self, value: Tensor, gradient: Tensor, positions: Tensor) -> None:
        """Move some entries of a vector in place.

        Args:
            value: [size].
            gradient: [P].
            positions: int64 [P], which entries, each once.
        """
        positions = positions.to(value.device)
        entries = value[positions]
        gradient = gradient.to(value) + self.weight_decay * entries
        steps = self.steps[positions] + 1
        first = self.first[positions].lerp(gradient, 1 - self.betas[0])
        second = self.betas[1] * self.second[positions] + (1 - self.betas[1]) * gradient**2
        self.steps[positions], self.first[positions], self.second[positions] = steps, first, second
        # 1 - beta ** steps, exact in single precision too.
        correction = [-torch.expm1(steps.to(value) * math.log(beta)) for beta in self.betas]
        value[positions] = entries - self.lr * (first / correction[0]) / ((second / correction[1]).sqrt() + self.eps)
