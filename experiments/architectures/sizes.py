"""Networks of equal size, whatever the architecture: the widths of the encoder's stages are scaled."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import mtl_lightning.architectures
import mtl_lightning.heads
import mtl_lightning.tasks
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.model import MultiTaskModel

HERE = Path(__file__).resolve().parent
MATCHED: dict[str, dict[str, Any]] = {
    "HardSharing": {},
    "SplitAt": {"shared": 2},
    "CrossStitch": {},
    "MTAN": {},
    "MMoE": {"experts": 3},
    "PLE": {},
}
OTHERS: dict[str, dict[str, Any]] = {
    "NDDR": {},
    "SoftSharing": {},
    "LTB": {"epochs": 4},
    "CGC": {},
    "DSelectK": {"experts": 4, "selected": 2},
    "TaskConditioned": {"film": [2, 3]},
    "TaskAdapters": {},
    "LoRA": {},
}
"""Options by architecture; everything else is the default."""
CLASSES = {"garment": 10, "digit": 10, "shape": 4}


def networks(config: Mapping[str, Any]) -> Callable[[str, Sequence[int]], MultiTaskModel]:
    """Builds the network of a configuration for an architecture and widths."""

    def build(architecture: str, widths: Sequence[int]) -> MultiTaskModel:
        torch.manual_seed(0)
        tasks = {}
        for name, part in config["model"]["tasks"].items():
            arguments = dict(part.get("init_args") or {})
            head = arguments.pop("head", None)
            if head is not None:
                kind = getattr(mtl_lightning.heads, head["class_path"])
                arguments["head"] = lambda specs, channels, kind=kind, more=head["init_args"]: kind(specs, channels, **more)
            if name in CLASSES:
                arguments["classes"] = [str(number) for number in range(CLASSES[name])]
            tasks[name] = getattr(mtl_lightning.tasks, part["class_path"])(**arguments)
        encoder = SmallCNN(list(widths), config["model"]["encoder"]["init_args"].get("in_channels", 3))
        kind = getattr(mtl_lightning.architectures, architecture)
        return MultiTaskModel(tasks, kind(encoder, list(tasks), **(MATCHED | OTHERS)[architecture]))

    return build


def parameters(model: nn.Module) -> int:
    """How many numbers are learnt, heads included."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def matched_widths(build: Callable[[str, Sequence[int]], MultiTaskModel], architecture: str, base: Sequence[int]) -> list[int]:
    """The widths, scaled together, whose network is nearest in size to hard sharing with the base widths.

    Raises:
        SystemExit: none is within 5 %.
    """
    wanted = parameters(build("HardSharing", base))
    best = min(
        ([max(1, round(width * percent / 100)) for width in base] for percent in range(20, 125)),
        key=lambda widths: abs(parameters(build(architecture, widths)) - wanted),
    )
    found = parameters(build(architecture, best))
    if abs(found - wanted) > 0.05 * wanted:
        raise SystemExit(f"{architecture}: {best} has {found} parameters, {wanted} are wanted")
    return best


def read(name: str) -> dict[str, Any]:
    """A configuration of this folder."""
    config: dict[str, Any] = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    return config
