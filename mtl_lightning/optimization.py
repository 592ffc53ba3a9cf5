"""The optimizer's parameter groups with their learning-rate multipliers, and the schedule over them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.errors import ConfigError
from mtl_lightning.model import MultiTaskModel

Groups = list[dict[str, Any]]


def parameter_groups(model: MultiTaskModel, weighting: nn.Module) -> Groups:
    """Named groups for an optimizer, those that have parameters.

    ``encoder``: all copies of its stages; ``architecture``: what the architecture adds to it (gates, stitches, adapters);
    ``heads``; and ``weighting``.
    """
    stages = [module for module in model.architecture.modules() if isinstance(module, Encoder | Stage)]
    encoder = {parameter for module in stages for parameter in module.parameters()}
    every = list(model.architecture.parameters())
    listed = {
        "encoder": [parameter for parameter in every if parameter in encoder],
        "architecture": [parameter for parameter in every if parameter not in encoder],
        "heads": list(model.heads.parameters()),
        "weighting": list(weighting.parameters()),
    }
    return [{"name": name, "params": parameters} for name, parameters in listed.items() if parameters]


def scale_scheduled(optimizer: Optimizer, multipliers: Mapping[str, float]) -> None:
    """Apply the multipliers again where a schedule (OneCycleLR) has set rates of its own for all groups."""
    for group in optimizer.param_groups:
        if "max_lr" in group:
            factor = multipliers.get(group["name"], 1.0)
            for key in {"lr", "initial_lr", "max_lr", "min_lr", "base_lr"} & set(group):
                group[key] *= factor


class Optimization:
    """Builds optimizer and schedule as they are configured.

    Args:
        optimizer: from parameter groups to the optimizer.
        scheduler: from the optimizer to its schedule; None keeps the rates.
        multipliers: of the learning rate, by the name of the group.

    Raises:
        ConfigError: a multiplier below 0.
    """

    def __init__(
        self,
        optimizer: Callable[[Groups], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None,
        multipliers: Mapping[str, float],
    ) -> None:
        for key, value in multipliers.items():
            if value < 0:
                raise ConfigError(f"model.{key}_lr is {value}, expected 0 or more")
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._multipliers = dict(multipliers)

    def build(self, groups: Groups, weighting_lr: float | None, length: Callable[[], int]) -> tuple[Optimizer, Any]:
        """A new optimizer, and a new schedule or None.

        Args:
            groups: of :func:`parameter_groups`.
            weighting_lr: learning rate of the group ``weighting``; None takes the optimizer's.
            length: says how often the schedule moves, asked where the schedule wants to know.

        Raises:
            ConfigError: what the classes themselves refuse.
        """
        try:
            optimizer = self._optimizer(groups)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model.optimizer: {error}") from error
        multipliers = dict(self._multipliers)
        for group in optimizer.param_groups:
            if group["name"] == "weighting":
                group["weight_decay"] = 0.0
                if weighting_lr is not None:
                    multipliers["weighting"] = weighting_lr / group["lr"] if group["lr"] else 1.0
            group["lr"] *= multipliers.get(group["name"], 1.0)
        if self._scheduler is None:
            return optimizer, None
        try:
            scheduler = self._scheduler(optimizer)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model.scheduler: {error}") from error
        if getattr(scheduler, "total_steps", 0) is None:
            scheduler.total_steps = length()
        scale_scheduled(optimizer, multipliers)
        return optimizer, scheduler

    def twin(self, groups: Groups, weighting_lr: float | None, length: Callable[[], int]) -> tuple[Optimizer, Any]:
        """The same over parameters that nobody uses, to see where a schedule would be."""
        return self.build([group | {"params": [nn.Parameter(torch.zeros(1))]} for group in groups], weighting_lr, length)
