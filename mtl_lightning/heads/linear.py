"""One fully connected layer on the pooled last feature map."""

from collections.abc import Sequence

from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec, pool
from mtl_lightning.heads.base import Head, need_maps


class Linear(Head):
    """Average the last map over regions, then one fully connected layer.

    Args:
        specs: the feature pyramid, finest first.
        channels: outputs.
        pool: regions along each side; 1 is global average pooling, more keeps coarse positions (for boxes).
        dropout: share of the pooled values left out in training, in [0, 1).

    Raises:
        ConfigError: a feature that is not a map, or a number out of its range.
    """

    dense = False

    def __init__(self, specs: Sequence[FeatureSpec], channels: int, pool: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        need_maps(type(self).__name__, specs)
        if pool < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                f"head {type(self).__name__}: pool is {pool} and dropout {dropout}, expected pool >= 1 and dropout in [0, 1)"
            )
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(specs[-1].channels * pool**2, channels)

    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        """Predict [B, channels]; padding is left out of the averages."""
        prediction: Tensor = self.linear(self.dropout(pool(features[-1], self.pool)))
        return prediction
