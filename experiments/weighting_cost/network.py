"""The network, its batch and its losses in plain torch: the same for this framework and for the peers it is timed beside."""

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

CLASSES = 10
CHANNELS = (32, 64, 128, 128, 256)
STRIDE = 8
"""Of the trunk's map."""


@dataclass(frozen=True)
class Shape:
    """What is trained.

    Attributes:
        tasks: their number.
        head: ``light`` is one linear layer on the pooled map; ``conv`` and ``deep`` have one and two hidden convolutions, as
            wide as the map, before it; ``heavy`` predicts every pixel.
        trunk: ``cnn`` is five convolutions, ``wide`` three of the given width on small maps, for many parameters.
        width: of the hidden layers of heavy heads, or of the wide trunk.
        rows: of the batch.
        side: of its pictures.
        norm: batch norm in the ``cnn`` trunk.
    """

    tasks: int
    head: Literal["light", "conv", "deep", "heavy"] = "light"
    trunk: Literal["cnn", "wide"] = "cnn"
    width: int = 64
    rows: int = 16
    side: int = 64
    norm: bool = True


def block(before: int, after: int, stride: int = 1, norm: bool = True) -> list[nn.Module]:
    if not norm:
        return [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU(inplace=True)]
    convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]


def trunk(shape: Shape) -> nn.Sequential:
    if shape.trunk == "wide":
        stem = [nn.Conv2d(3, shape.width, STRIDE, STRIDE), nn.ReLU(inplace=True)]
        return nn.Sequential(*stem, *(layer for _ in range(3) for layer in block(shape.width, shape.width)))
    strides = (1, 2, 2, 1, 2)
    before = (3, *CHANNELS)
    return nn.Sequential(
        *(layer for i, stride in enumerate(strides) for layer in block(before[i], CHANNELS[i], stride, shape.norm))
    )


def head(shape: Shape) -> nn.Sequential:
    channels = shape.width if shape.trunk == "wide" else CHANNELS[-1]
    if shape.head == "heavy":
        width, up = shape.width, nn.Upsample(scale_factor=2)
        layers = [*block(channels, width), up, *block(width, width), up, *block(width, width), up]
        return nn.Sequential(*layers, nn.Conv2d(width, CLASSES, 1))
    hidden = {"light": 0, "conv": 1, "deep": 2}[shape.head]
    layers = [layer for _ in range(hidden) for layer in block(channels, channels)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def network(shape: Shape) -> tuple[nn.Sequential, list[nn.Sequential]]:
    """Trunk and heads, always with the same numbers in them."""
    torch.manual_seed(0)
    return trunk(shape), [head(shape) for _ in range(shape.tasks)]


def data(shape: Shape) -> tuple[Tensor, list[Tensor]]:
    """Pictures [B, 3, H, W], and for each task classes [B] or [B, H, W]; every row is labelled."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(shape.rows, 3, shape.side, shape.side, generator=generator)
    size = (shape.rows, shape.side, shape.side) if shape.head == "heavy" else (shape.rows,)
    return images, [torch.randint(CLASSES, size, generator=generator) for _ in range(shape.tasks)]


def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A cheap one, so that it does not hide what gradients cost, and slow, so that thousands of steps do not end the learning."""
    return torch.optim.SGD(parameters, lr=1e-5, momentum=0.9)


def now(device: torch.device, cpu_time: bool = False) -> float:
    """Seconds, when all that was asked of the device is done; or those that the process was computing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if cpu_time else time.perf_counter()
