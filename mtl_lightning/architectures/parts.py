"""What architectures are made of: copies of encoders, steps through stages, sums of features."""

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features

Module = TypeVar("Module", bound=nn.Module)


def copies(module: Module, number: int, fresh: bool) -> list[Module]:
    """A module and copies of it.

    Args:
        module: the first of them.
        number: of all.
        fresh: whether its weights are random: then each copy draws its own, of the same distribution (the elements of each
            parameter in another order; those that are all equal, as the scales and shifts of norms, stay). Pretrained weights
            are the same in all copies.
    """
    made = [module, *(copy.deepcopy(module) for _ in range(number - 1))]
    for other in made[1:] if fresh else []:
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    return made


def staged(architecture: str, encoder: Encoder) -> list[Stage]:
    """The encoder's stages, for an architecture that steps through them; raises :class:`ConfigError` where there are none."""
    stages: list[Stage] = list(encoder.stages)  # type: ignore[arg-type]
    if not stages or type(encoder).forward is not Encoder.forward:
        raise ConfigError(
            f"model.architecture {architecture} steps through the encoder stage by stage, and {type(encoder).__name__} "
            f"{'has a forward pass of its own' if stages else 'has no stages'}; take an encoder with stages (SmallCNN, ResNet, "
            "ConvNeXt, Swin, …), or the architecture HardSharing"
        )
    return stages


def check_level(architecture: str, key: str, level: int, stages: Sequence[Stage], lowest: int = 0) -> None:
    """Raise :class:`ConfigError` for a number of stages that the encoder does not have.

    Args:
        architecture: its class.
        key: the argument.
        level: its value.
        stages: of the encoder.
        lowest: of what may be.
    """
    if not lowest <= level <= len(stages):
        raise ConfigError(
            f"model.architecture.init_args.{key} is {level}, expected {lowest} to {len(stages)}: {architecture} counts the "
            f"encoder's stages, of which there are {len(stages)}"
        )


def numbered(architecture: str, key: str, numbers: Sequence[int] | None, encoder: Encoder) -> list[int]:
    """Stages that an argument names, counted from 1, as indices in order; None is all.

    Args:
        architecture: its class.
        key: the argument.
        numbers: its value.
        encoder: has the stages.

    Raises:
        ConfigError: none, one twice, or one that is not there.
    """
    stages = staged(architecture, encoder)
    if numbers is None:
        return list(range(len(stages)))
    if not numbers or len(set(numbers)) < len(numbers):
        raise ConfigError(
            f"model.architecture.init_args.{key} is {list(numbers)}, expected different stages of the encoder, from 1 to "
            f"{len(stages)}"
        )
    for number in numbers:
        check_level(architecture, key, number, stages, lowest=1)
    return sorted(number - 1 for number in numbers)


def run(stages: Iterable[Stage | nn.Module], features: Features) -> list[Features]:
    """What each stage gives in turn."""
    pyramid = []
    for stage in stages:
        features = stage(features)
        pyramid.append(features)
    return pyramid


def blend(features: Sequence[Features], weights: Tensor) -> Features:
    """A weighted sum of features of one shape, class tokens included.

    Args:
        features: of the same rows.
        weights: [K] for all rows and channels alike, [B, K] for each row, [1, K, C] for each channel.
    """
    if weights.ndim == 1:
        weights = weights[None]
    factors = weights[..., None] if weights.ndim == 2 else weights

    def mixed(tensors: Sequence[Tensor]) -> Tensor:
        total = None
        for place, tensor in enumerate(tensors):
            factor = factors[:, place].to(tensor.dtype)
            factor = factor.view(*factor.shape, *([1] * (tensor.ndim - 2)))
            # One pass over the memory for each summand instead of two.
            total = tensor * factor if total is None else torch.addcmul(total, tensor, factor)
        assert total is not None
        return total

    tokens = [level.token for level in features if level.token is not None]
    return Features(mixed([level.tensor for level in features]), features[0].valid, mixed(tokens) if tokens else None)


def wanted(tasks: Collection[str] | None, every: Sequence[str]) -> list[str]:
    """The asked tasks in the architecture's order; all where None are named."""
    return [task for task in every if tasks is None or task in tasks]


def belong(owners: dict[nn.Parameter, frozenset[str]], modules: Iterable[nn.Module], tasks: Iterable[str]) -> None:
    """Note that the parameters of the modules are used by these tasks, too."""
    users = frozenset(tasks)
    for module in modules:
        for parameter in module.parameters():
            owners[parameter] = owners.get(parameter, frozenset()) | users
