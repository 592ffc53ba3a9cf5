"""torchvision's networks as the trunks that encoders are cut from."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torchvision
from torch import nn

from mtl_lightning.encoders.base import Stage
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import FeatureSpec


def build_trunk(name: str, names: Sequence[str], in_channels: int, first: str, **arguments: Any) -> nn.Module:
    """Torchvision's network with random weights and without its classifier, for RGB or grey images.

    Args:
        name: of the network.
        names: what the name may be.
        in_channels: other than 3 replaces the first convolution.
        first: path of that.
        arguments: of torchvision's function.

    Raises:
        ConfigError: unknown name.
    """
    if name not in names:
        raise ConfigError(f"model.encoder.init_args.name is '{name}', expected one of {list(names)}")
    trunk: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=1, **arguments)
    for classifier in {"classifier", "fc", "head", "heads"} & dict(trunk.named_children()).keys():
        delattr(trunk, classifier)
    if in_channels != 3:
        old: nn.Conv2d = trunk.get_submodule(first)  # type: ignore[assignment]
        new = nn.Conv2d(
            in_channels,
            old.out_channels,
            old.kernel_size,  # type: ignore[arg-type]
            stride=old.stride,  # type: ignore[arg-type]
            padding=old.padding,  # type: ignore[arg-type]
            bias=old.bias is not None,
        )
        # As wide as before for a grey picture in three equal channels.
        new.weight.data.copy_(old.weight.data[:, :in_channels]).mul_((3 / in_channels) ** 0.5)
        if old.bias is not None and new.bias is not None:
            new.bias.data.copy_(old.bias.data)
        parent, _, child = first.rpartition(".")
        setattr(trunk.get_submodule(parent), child, new)
    return trunk


def cut(features: nn.Sequential, starts: Sequence[int]) -> list[nn.Sequential]:
    """The parts of a sequence that start at these indices and end before the next."""
    return [features[start:end] for start, end in pairwise([*starts, len(features)])]


def out_channels(part: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Conv2d) -> int:
    """Channels of the last convolution (or layer of these kinds) in a part of a network."""
    layers = [module for module in part.modules() if isinstance(module, kinds)]
    return int(layers[-1].out_channels)  # type: ignore[arg-type]


def as_stages(
    parts: Sequence[nn.Module], strides: Sequence[int], channels: Callable[[nn.Module], int] = out_channels
) -> list[Stage]:
    """Stages of the parts, at these strides."""
    return [Stage(part, FeatureSpec(channels(part), stride)) for part, stride in zip(parts, strides, strict=True)]
