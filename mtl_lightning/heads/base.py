"""The head contract."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec


class Head(nn.Module):
    """From a feature pyramid to one task's raw prediction."""

    dense: ClassVar[bool | None] = None
    """Whether it predicts for each pixel; None does not tell."""

    @abstractmethod
    def forward(self, features: Sequence[Features], size: tuple[int, int]) -> Tensor:
        """Predict.

        Args:
            features: the pyramid, finest first, as in the specs the head was built with.
            size: height and width of the input; dense heads answer at this size.

        Returns:
            [B, channels] or, from dense heads, [B, channels, height, width].
        """


def need_maps(head: str, specs: Sequence[FeatureSpec]) -> None:
    """Raise :class:`ConfigError` unless every feature of the pyramid is a map."""
    if not specs or any(spec.layout != "map" for spec in specs):
        raise ConfigError(f"head {head} needs feature maps, the encoder gives {[spec.layout for spec in specs]}")


def need_pyramid(head: str, specs: Sequence[FeatureSpec]) -> None:
    """Raise :class:`ConfigError` where several maps all have one stride, as a plain transformer's: there are no finer ones."""
    need_maps(head, specs)
    strides = [spec.stride for spec in specs]
    if len(strides) > 1 and min(strides) == max(strides):
        raise ConfigError(
            f"head {head} needs a pyramid, maps of several strides; the encoder gives {len(specs)} maps, all of stride "
            f"{strides[0]}. Set the task's init_args.head to one that reads the last map alone (FCN or ASPP for dense tasks; "
            "Linear, MLP or AttentionPooling for the others), or take an encoder with a pyramid (ResNet, ConvNeXt, Swin, …)"
        )
