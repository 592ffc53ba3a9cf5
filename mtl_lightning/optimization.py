"""Parameter groups and learning-rate multipliers."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mtl_lightning.model import MultiTaskModel


def parameter_groups(model: MultiTaskModel, weighting: nn.Module) -> list[dict[str, Any]]:
    """Named groups for an optimizer: ``encoder`` (the whole architecture), ``heads``, and ``weighting`` if it learns."""
    groups = {"encoder": model.architecture.parameters(), "heads": model.heads.parameters(), "weighting": weighting.parameters()}
    listed = {name: list(parameters) for name, parameters in groups.items()}
    return [{"name": name, "params": parameters} for name, parameters in listed.items() if parameters]


def scale_scheduled(optimizer: Optimizer, multipliers: Mapping[str, float]) -> None:
    """Apply the multipliers again where a schedule (OneCycleLR) has set rates of its own for all groups."""
    for group in optimizer.param_groups:
        if "max_lr" in group:
            factor = multipliers.get(group["name"], 1.0)
            for key in {"lr", "initial_lr", "max_lr", "min_lr", "base_lr"} & set(group):
                group[key] *= factor
