"""The encoder contract: a backbone as a sequence of stages."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec


class Stage(nn.Module):
    """A piece of a backbone between two features, carrying validity along.

    Args:
        body: maps a tensor to a tensor.
        spec: what comes out.
    """

    def __init__(self, body: nn.Module, spec: FeatureSpec) -> None:
        super().__init__()
        self.body = body
        self.spec = spec

    def forward(self, features: Features) -> Features:
        """One step through the backbone."""
        return features.like(self.body(features.tensor))


class Encoder(nn.Module):
    """A backbone as stages in order, so that any architecture can step through it.

    Args:
        stages: in order; each continues where the one before ended.
        in_channels: 1 or 3.
        mean, std: per channel (or one number for all), taken from and divided out of the image in 0..1.
        smallest: height and width that images must have at least.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        stages: Sequence[Stage],
        in_channels: int,
        mean: Sequence[float] | float,
        std: Sequence[float] | float,
        smallest: int = 1,
    ) -> None:
        super().__init__()
        self.smallest = smallest
        self.stages = nn.ModuleList(stages)
        self.in_channels = in_channels
        for key, value in {"mean": mean, "std": std}.items():
            values = [value] * in_channels if isinstance(value, int | float) else list(value)
            if len(values) != in_channels:
                raise ConfigError(f"encoder.{key} has {len(values)} numbers, expected one per channel: {in_channels}")
            self.register_buffer(key, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    @property
    def specs(self) -> list[FeatureSpec]:
        """What each stage gives, finest first."""
        return [stage.spec for stage in self.stages]  # type: ignore[union-attr, misc]

    def start(self, image: Features) -> Features:
        """Check and normalise the input; padding becomes 0."""
        if image.tensor.shape[1] != self.in_channels:
            raise ConfigError(
                f"the encoder takes {self.in_channels}-channel images, the data gives {image.tensor.shape[1]}; "
                "set model.encoder.init_args.in_channels and data.init_args.channels alike"
            )
        if not torch.compiler.is_compiling() and min(image.tensor.shape[-2:]) < self.smallest:
            raise ConfigError(
                f"the encoder {type(self).__name__} needs images of at least {self.smallest} x {self.smallest} pixels, the data "
                f"gives {image.tensor.shape[-2]} x {image.tensor.shape[-1]}; set data.init_args.image_size, or take fewer stages"
            )
        tensor = (image.tensor - self.mean) / self.std
        return Features(tensor if image.valid is None else tensor * image.valid, image.valid)

    def forward(self, image: Features) -> list[Features]:
        """All stages in turn.

        Args:
            image: [B, in_channels, H, W] in 0..1.

        Returns:
            The pyramid, finest first.
        """
        features, pyramid = self.start(image), []
        for stage in self.stages:
            features = stage(features)
            pyramid.append(features)
        return pyramid
