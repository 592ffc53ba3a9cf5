"""Pictures of masks: colours of classes, and bars of their scores."""

import colorsys
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from torch import Tensor

from mtl_lightning.tasks.drawing import resize, show_image

COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#ff9da7", "#9c755f")
UNLABELLED = (0.6, 0.6, 0.6)


def palette(count: int) -> Tensor:
    """Colours of classes, [count, 3] in 0..1: a few fixed ones, then hues in steps of the golden ratio."""
    fixed = [to_rgb(color) for color in COLORS[:count]]
    turns = range(len(fixed), count)
    further = [colorsys.hsv_to_rgb(turn * 0.618 % 1, 0.55 + turn % 2 * 0.35, 0.9 - turn % 3 * 0.2) for turn in turns]
    return torch.tensor(fixed + further)


def draw_mask(axes: Axes, image: Tensor, mask: Tensor, names: Sequence[str]) -> None:
    """The classes' colours over the grey version of a picture, so that only classes have colours; plain grey without a label.

    Each class that is seen gets an artist with its name, for a legend.

    Args:
        axes: where to draw.
        image: [C, H, W] in 0..1.
        mask: class indices int64 [H, W] on the CPU, -1 where there is no label.
        names: of the classes.
    """
    colors = torch.cat([palette(len(names)), torch.tensor([UNLABELLED])])
    # The grey is lifted, or colours would turn dark on dark pictures.
    # Unlabelled is -1, which is the last colour.
    painted = colors[mask].permute(2, 0, 1)
    picture = image.detach().float().cpu().mean(0, keepdim=True)
    show_image(axes, torch.where(mask < 0, painted, 0.7 * painted + 0.15 * picture + 0.15))
    for index in torch.unique(mask).tolist():
        label = names[index] if index >= 0 else "not labelled"
        axes.plot([], [], "s", color=to_hex(tuple(colors[index].tolist())), markersize=5, label=label)


def iou_bars(scores: Mapping[str, float], axes: Axes) -> None:
    """A bar per class with its intersection over union in 0..1."""
    resize(axes, 5, max(2.5, 1 + 0.22 * len(scores)))
    axes.set_title("intersection over union of each class")
    bars = axes.barh(list(scores), list(scores.values()), color=COLORS[0])
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("intersection over union")
