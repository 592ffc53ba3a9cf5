"""One fully connected layer on the pooled last feature map."""

from collections.abc import Sequence

from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec, pool
from mtl_lightning.heads.base import Head, need_maps
from mtl_lightning.heads.blocks import Norm, check_options, norm_layers


class Linear(Head):
    """Average the last map over regions, then one fully connected layer.

    Args:
        specs: the feature pyramid, finest first.
        channels: outputs.
        pool: regions along each side; 1 is global average pooling, more keeps coarse positions (for boxes).
        dropout: share of the pooled values left out in training, in [0, 1).
        norm: of the pooled values: ``batch``, ``layer`` or ``none``.

    Raises:
        ConfigError: a feature that is not a map, or a number out of its range.
    """

    dense = False

    def __init__(
        self, specs: Sequence[FeatureSpec], channels: int, pool: int = 1, dropout: float = 0.0, norm: Norm = "none"
    ) -> None:
        super().__init__()
        need_maps(type(self).__name__, specs)
        if pool < 1:
            raise ConfigError(f"head {type(self).__name__}: pool is {pool}, expected 1 or more")
        width = specs[-1].channels * pool**2
        check_options(type(self).__name__, dropout, norm, width)
        self.pool = pool
        self.norm = nn.Sequential(*norm_layers(norm, width, vector=True))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, channels)

    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        """Predict [B, channels]; padding is left out of the averages."""
        prediction: Tensor = self.linear(self.dropout(self.norm(pool(features[-1], self.pool))))
        return prediction
