"""Learnt queries that look for what matters in the last map."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.heads.base import Head, need_maps
from mtl_lightning.heads.blocks import Norm, check_options, norm_layers


class AttentionPooling(Head):
    """Attend to the cells of the last map with learnt queries, then one fully connected layer.

    Pooling by multi-head attention as in J. Lee et al., "Set Transformer", ICML 2019. Ours has neither the residual nor the
    feed-forward part, and queries start near 0, so that training starts from the average of all cells. Padding gets no
    attention, cells that are padding in part get less. Where in the picture a cell lies is not known to the queries.

    Args:
        specs: the feature pyramid, finest first.
        channels: outputs.
        queries: how many; the layer sees what all of them found.
        heads: parts that each query is split into, each with an attention of its own; they must divide ``width``.
        width: of queries and values; null takes the map's channels.
        dropout: share of the pooled values left out in training, in [0, 1).
        norm: of the pooled values: ``batch``, ``layer`` or ``none``.

    Raises:
        ConfigError: a feature that is not a map, or a number out of its range.
    """

    dense = False

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        channels: int,
        queries: int = 1,
        heads: int = 1,
        width: int | None = None,
        dropout: float = 0.0,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        need_maps(type(self).__name__, specs)
        width = specs[-1].channels if width is None else width
        if queries < 1 or heads < 1 or width < 1 or width % heads:
            raise ConfigError(
                f"head {type(self).__name__}: queries is {queries}, heads {heads} and width {width}, expected numbers >= 1 and "
                "heads that divide width"
            )
        check_options(type(self).__name__, dropout, norm, queries * width)
        self.query = nn.Parameter(0.02 * torch.randn(queries, heads, width // heads))
        # What a bias would add to the keys is the same for all cells, and softmax would take it off again.
        self.keys = nn.Linear(specs[-1].channels, width, bias=False)
        self.values = nn.Linear(specs[-1].channels, width)
        self.norm = nn.Sequential(*norm_layers(norm, queries * width, vector=True))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(queries * width, channels)

    def attend(self, features: Features) -> Tensor:
        """How much each query looks at each cell: [B, heads, queries, h * w], non-negative, each row's sum is 1."""
        keys = self._split(self.keys(features.tensor.flatten(2).transpose(1, 2)))
        scores = torch.einsum("qhd,bnhd->bhqn", self.query, keys) * self.query.shape[-1] ** -0.5
        if features.valid is not None:
            share = features.valid.flatten(2).unsqueeze(1)
            lowest = torch.finfo(share.dtype).min / 2
            scores = scores + torch.where(share > 0, share.clamp_min(torch.finfo(share.dtype).tiny).log(), lowest)
        weights: Tensor = scores.softmax(-1)
        return weights

    def _split(self, cells: Tensor) -> Tensor:
        return cells.view(*cells.shape[:2], *self.query.shape[1:])

    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        """Predict [B, channels]; padding is left out."""
        last = features[-1]
        values = self._split(self.values(last.tensor.flatten(2).transpose(1, 2)))
        pooled = torch.einsum("bhqn,bnhd->bqhd", self.attend(last).to(values.dtype), values).flatten(1)
        prediction: Tensor = self.linear(self.dropout(self.norm(pooled)))
        return prediction
