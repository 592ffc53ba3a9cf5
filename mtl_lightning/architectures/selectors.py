"""Sparse gates that can be learnt by gradients: experts chosen by the bits of their numbers."""

from typing import Any

import torch
from torch import Tensor, nn

from mtl_lightning.architectures.gates import Router
from mtl_lightning.architectures.seen import Seen

TINY = 1e-6


def smooth_step(values: Tensor, width: float) -> Tensor:
    """A cubic from exactly 0, at -width / 2 and below, to exactly 1, at width / 2 and above."""
    place = (values / width + 0.5).clamp(0, 1)
    return place * place * (3 - 2 * place)


class Selectors(nn.Module):
    """A weighted sum of selectors, each of which comes to choose one expert.

    Args:
        channels: of the vector that it reads; None learns weights that are the same for every input.
        experts: how many.
        selected: selectors, so that at most as many experts have a weight in the end.
        gamma: width of the smooth step.
    """

    codes: Tensor

    def __init__(self, channels: int | None, experts: int, selected: int, gamma: float) -> None:
        super().__init__()
        bits = (experts - 1).bit_length()
        self.selected, self.gamma = selected, gamma
        self.complete = experts == 2**bits
        self.bits = Router(channels, selected * bits, gamma / 100)
        self.shares = Router(channels, selected, 0.05)
        codes = [[bool(number >> bit & 1) for bit in range(bits)] for number in range(experts)]
        self.register_buffer("codes", torch.tensor(codes, dtype=torch.bool).view(experts, bits), persistent=False)
        self.seen = Seen()
        self._last: tuple[Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What is kept of a forward pass has a graph, which can be neither copied nor saved.
        return {**self.__dict__, "_last": None}

    def _choices(self, vector: Tensor | None) -> Tensor:
        """How much each selector gives to each expert, [..., selected, experts]."""
        logits = self.bits(vector)
        steps = smooth_step(logits.view(*logits.shape[:-1], self.selected, 1, self.codes.shape[1]), self.gamma)
        return torch.where(self.codes, steps, 1 - steps).prod(-1)

    def forward(self, vector: Tensor | None) -> Tensor:
        """Weights [B, experts], or [experts], that add up to 1 but for what selectors give to numbers without an expert."""
        choices = self._choices(vector)
        weights: Tensor = (self.shares(vector).softmax(-1).unsqueeze(-1) * choices).sum(-2)
        self.seen.add(weights.view(-1, weights.shape[-1]))
        if self.training and vector is not None:
            self._last = self._measure(choices)
        return weights

    @staticmethod
    def _measure(choices: Tensor) -> tuple[Tensor, Tensor]:
        entropy = -(choices * choices.clamp_min(TINY**2).log()).sum(-1)
        missing = 1 / choices.sum(-1).clamp_min(TINY) - 1
        return entropy.sum(-1).mean(), missing.sum(-1).mean()

    def measures(self) -> tuple[Tensor, Tensor]:
        """The selectors' entropies, and 1 / (what they give to experts) - 1: sums over selectors, means over rows.

        Of the last forward pass in training where the input is read, 0 before there was one.
        """
        if self.bits.weight is None:
            return self._measure(self._choices(None))
        nothing = self.bits.weight.new_zeros(())
        return self._last or (nothing, nothing)
