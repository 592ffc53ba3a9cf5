"""The encoder contract: a backbone as a sequence of stages."""

from collections.abc import Sequence
from typing import Self

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

    frozen = False
    """Set by :meth:`freeze`."""
    adapted = False
    """Set by architectures that put learning weights in the place of its own."""

    def __init__(self, body: nn.Module, spec: FeatureSpec) -> None:
        super().__init__()
        self.body = body
        self.spec = spec

    def forward(self, features: Features) -> Features:
        """One step through the backbone; a frozen stage keeps no graph unless something before it or in it learns."""
        if self.frozen and not self.adapted and not features.tensor.requires_grad:
            with torch.no_grad():
                return self.step(features)
        return self.step(features)

    def step(self, features: Features) -> Features:
        """The step itself, for stages whose body is more than a map of one tensor."""
        return features.like(self.body(features.tensor))

    def freeze(self, frozen: bool) -> None:
        """Hold batch norm, dropout and stochastic depth in evaluation mode, whatever ``train()`` says; or let them go.

        The parameters keep ``requires_grad``, which must not change once DistributedDataParallel has seen them: who trains
        drops their gradients.
        """
        training = self.training or self.frozen
        self.frozen = frozen
        self.train(training)

    def train(self, mode: bool = True) -> Self:
        """As usual, but a frozen stage stays in evaluation mode."""
        return super().train(mode and not self.frozen)


class Encoder(nn.Module):
    """A backbone as stages in order, so that any architecture can step through it.

    What the data gives is made ready for the first stage by :meth:`start`: of pictures in :class:`ImageEncoder`, of texts in
    :class:`~mtl_lightning.encoders.text.TextEncoder`.

    Args:
        stages: in order; each continues where the one before ended.
        take: how many of the stages, from the first on; None takes all.

    Raises:
        ConfigError: more stages than there are.
    """

    fresh: bool = False
    """Whether its weights are random draws, so that an architecture's copies draw their own instead of repeating them."""

    def __init__(self, stages: Sequence[Stage], take: int | None = None) -> None:
        super().__init__()
        take = len(stages) if take is None else take
        if not 1 <= take <= len(stages):
            raise ConfigError(
                f"model.encoder.init_args.stages is {take}, expected 1 to {len(stages)} or null for all: "
                f"{type(self).__name__} has the stages {describe([stage.spec for stage in stages])}"
            )
        self.stages = nn.ModuleList(stages[:take])

    @property
    def specs(self) -> list[FeatureSpec]:
        """What each stage gives, finest first."""
        return [stage.spec for stage in self.stages]  # type: ignore[union-attr, misc]

    def start(self, source: Features) -> Features:
        """Check the input and make it ready for the first stage; here it passes as it is."""
        return source

    def forward(self, source: Features) -> list[Features]:
        """All stages in turn.

        Args:
            source: the input as the data gives it, [B, C, H, W] in 0..1 or token ids [B, L].

        Returns:
            The pyramid, finest first.
        """
        features, pyramid = self.start(source), []
        for stage in self.stages:
            features = stage(features)
            pyramid.append(features)
        return pyramid


class ImageEncoder(Encoder):
    """A backbone for pictures.

    Args:
        stages: in order; each continues where the one before ended.
        in_channels: 1 or 3.
        mean, std: per channel (or one number for all), taken from and divided out of the image in 0..1.
        smallest: height and width that images must have at least, one number, or one for each number of stages taken.
        take: how many of the stages, from the first on; None takes all.

    Raises:
        ConfigError: more stages than there are, or numbers that do not fit the channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        stages: Sequence[Stage],
        in_channels: int,
        mean: Sequence[float] | float,
        std: Sequence[float] | float,
        smallest: int | Sequence[int] = 1,
        take: int | None = None,
    ) -> None:
        super().__init__(stages, take)
        self.smallest = smallest if isinstance(smallest, int) else smallest[len(self.stages) - 1]
        self.in_channels = in_channels
        for key, value in {"mean": mean, "std": std}.items():
            values = [value] * in_channels if isinstance(value, int | float) else list(value)
            if len(values) != in_channels:
                raise ConfigError(f"encoder.{key} has {len(values)} numbers, expected one per channel: {in_channels}")
            self.register_buffer(key, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def start(self, image: Features) -> Features:
        """Check and normalise the input [B, in_channels, H, W] in 0..1; padding becomes 0."""
        if image.tensor.ndim != 4:
            raise ConfigError(
                f"model.encoder {type(self).__name__} reads pictures, the data gives texts; take a text encoder (BagOfWords, "
                "TextGRU, TextAttention, TextTransformer), or a data module of pictures"
            )
        if image.tensor.shape[1] != self.in_channels:
            raise ConfigError(
                f"the encoder takes {self.in_channels}-channel images, the data gives {image.tensor.shape[1]}; "
                "set model.encoder.init_args.in_channels and data.init_args.channels alike"
            )
        if not torch.compiler.is_compiling() and min(image.tensor.shape[-2:]) < self.smallest:
            raise ConfigError(
                f"the encoder {type(self).__name__} needs images of at least {self.smallest} x {self.smallest} pixels, the data "
                f"gives {image.tensor.shape[-2]} x {image.tensor.shape[-1]}; set data.init_args.image_size, or give "
                "model.encoder fewer stages"
            )
        tensor = (image.tensor - self.mean) / self.std
        return Features(tensor if image.valid is None else tensor * image.valid, image.valid)


def describe(specs: Sequence[FeatureSpec]) -> str:
    """Stages for a message: their numbers, channels and strides."""
    return ", ".join(f"{number} ({spec.channels} channels, stride {spec.stride})" for number, spec in enumerate(specs, start=1))
