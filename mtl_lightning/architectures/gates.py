"""Gates: how much of each expert a task takes."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_lightning.architectures.base import Table
from mtl_lightning.architectures.seen import Seen
from mtl_lightning.features import Features, pool


def pooled(features: Features) -> Tensor:
    """What gates read of features: their mean without padding, [B, C], in float32 or better also under autocast."""
    wide = torch.promote_types(features.tensor.dtype, torch.float32)
    with torch.autocast(features.tensor.device.type, enabled=False):
        valid = None if features.valid is None else features.valid.to(wide)
        return pool(Features(features.tensor.to(wide), valid))


class Router(nn.Module):
    """Logits that are linear in a vector, in float32 or better; or learnt numbers where there is nothing to read.

    Args:
        channels: of the vector; None learns numbers alone, the same for every row.
        outputs: how many logits.
        spread: draws are uniform in plus or minus this; None takes 1 / sqrt(channels), or 0.1 for numbers alone.
    """

    def __init__(self, channels: int | None, outputs: int, spread: float | None = None) -> None:
        super().__init__()
        self.weight = None if channels is None else nn.Parameter(torch.empty(outputs, channels))
        self.bias = nn.Parameter(torch.empty(outputs))
        if spread is None:
            spread = 0.1 if channels is None else channels**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -spread, spread)

    def forward(self, vector: Tensor | None) -> Tensor:
        """From [B, channels] to [B, outputs]; to [outputs] where nothing is read."""
        if self.weight is None or vector is None:
            return self.bias.to(torch.promote_types(self.bias.dtype, torch.float32))
        with torch.autocast(vector.device.type, enabled=False):
            return F.linear(vector, self.weight.to(vector.dtype), self.bias.to(vector.dtype))


class Gate(nn.Module):
    """Softmax weights of experts.

    They start at random and not equal: experts that are copies of one pretrained network would get the same gradient for ever.

    Args:
        channels: of the vector that it reads; None learns weights that are the same for every input.
        experts: how many.
    """

    def __init__(self, channels: int | None, experts: int) -> None:
        super().__init__()
        self.router = Router(channels, experts)
        self.seen = Seen()

    def forward(self, vector: Tensor | None) -> Tensor:
        """Weights that add up to 1: [B, experts], or [experts]."""
        weights: Tensor = self.router(vector).softmax(-1)
        self.seen.add(weights.view(-1, weights.shape[-1]))
        return weights


def gate_table(gates: Mapping[str, nn.Module], columns: Sequence[str], places: Mapping[str, Sequence[int]]) -> Table | None:
    """The mean weights that gates gave while somebody watched; None if some of them were not seen.

    Args:
        gates: by row, each with a :class:`~mtl_lightning.architectures.seen.Seen`.
        columns: names of all experts.
        places: the experts that each gate weighs; the others get NaN.
    """
    rows = []
    for name, gate in gates.items():
        mean = cast(Seen, gate.seen).mean
        if mean is None:
            return None
        row = torch.full((len(columns),), torch.nan, dtype=torch.float64)
        row[list(places[name])] = mean.cpu()
        rows.append(row)
    return Table(list(gates), list(columns), torch.stack(rows))
