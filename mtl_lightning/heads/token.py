"""One fully connected layer on a transformer's class token."""

from collections.abc import Sequence

from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.heads.base import Head


class ClassToken(Head):
    """A fully connected layer on the last stage's class token, as vision transformers are pretrained.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.

    Args:
        specs: the features, finest first.
        channels: outputs.
        dropout: share of the token's values left out in training, in [0, 1).

    Raises:
        ConfigError: an encoder without class token, or a number out of its range.
    """

    dense = False

    def __init__(self, specs: Sequence[FeatureSpec], channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        if not specs or not specs[-1].token:
            raise ConfigError(
                f"head {type(self).__name__} needs an encoder with a class token (ViT); take Linear or MLP, which average the "
                "last map"
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"head {type(self).__name__}: dropout is {dropout}, expected a share in [0, 1)")
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(specs[-1].channels, channels)

    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        """Predict [B, channels]."""
        prediction: Tensor = self.linear(self.dropout(features[-1].token))
        return prediction
