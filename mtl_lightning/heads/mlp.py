"""A multilayer perceptron on the pooled last feature map."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec, pool
from mtl_lightning.heads.base import Head, need_maps
from mtl_lightning.heads.blocks import Norm, check_options, norm_layers


class MLP(Head):
    """Average the last map over regions, then fully connected layers with ReLU and dropout between them.

    Args:
        specs: the feature pyramid, finest first.
        channels: outputs.
        hidden: widths of the hidden layers; an empty list makes the head linear.
        pool: regions along each side; 1 is global average pooling, more keeps coarse positions (for boxes).
        dropout: share of the hidden values left out in training, in [0, 1).
        norm: of the hidden values, before their ReLU: ``batch``, ``layer`` or ``none``.

    Raises:
        ConfigError: a feature that is not a map, or a number out of its range.
    """

    dense = False

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        channels: int,
        hidden: list[int] = [128],  # noqa: B006
        pool: int = 1,
        dropout: float = 0.0,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        need_maps(type(self).__name__, specs)
        if pool < 1 or min(hidden, default=1) < 1:
            raise ConfigError(
                f"head {type(self).__name__}: pool is {pool} and hidden {hidden}, expected pool and every hidden width >= 1"
            )
        check_options(type(self).__name__, dropout, norm, min(hidden, default=2))
        self.pool = pool
        widths = [specs[-1].channels * pool**2, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), *norm_layers(norm, after, vector=True)]
            layers += [nn.ReLU(inplace=True), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], channels))

    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        """Predict [B, channels]; padding is left out of the averages."""
        prediction: Tensor = self.layers(pool(features[-1], self.pool))
        return prediction
