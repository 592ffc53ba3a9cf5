"""Pictures of masks: colours of classes, and bars of their scores."""

import colorsys
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Patch
from torch import Tensor

from mtl_lightning.tasks.drawing import show_image

COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#ff9da7", "#9c755f")
UNLABELLED = (0.6, 0.6, 0.6)
LEGEND = 6
"""A legend of more classes would hide a small picture."""


def palette(count: int) -> Tensor:
    """Colours of classes, [count, 3] in 0..1: a few fixed ones, then hues in steps of the golden ratio."""
    fixed = [to_rgb(color) for color in COLORS[:count]]
    turns = range(len(fixed), count)
    further = [colorsys.hsv_to_rgb(turn * 0.618 % 1, 0.55 + turn % 2 * 0.35, 0.9 - turn % 3 * 0.2) for turn in turns]
    return torch.tensor(fixed + further)


def draw_mask(axes: Axes, image: Tensor, mask: Tensor, names: Sequence[str]) -> None:
    """The classes' colours over a picture, grey where there is no label.

    Args:
        axes: where to draw.
        image: [C, H, W] in 0..1.
        mask: class indices int64 [H, W] on the CPU, -1 where there is no label.
        names: of the classes.
    """
    colors = torch.cat([palette(len(names)), torch.tensor([UNLABELLED])])
    # Unlabelled is -1, which is the last colour.
    painted = colors[mask].permute(2, 0, 1)
    picture = image.detach().float().cpu()
    show_image(axes, torch.where(mask < 0, painted, 0.35 * picture + 0.65 * painted))
    seen = [index for index in torch.unique(mask).tolist() if index >= 0]
    if 0 < len(seen) <= LEGEND:
        patches = [Patch(color=to_hex(tuple(colors[index].tolist())), label=names[index]) for index in seen]
        axes.legend(handles=patches, loc="lower left", fontsize=5, handlelength=0.8, borderpad=0.3, labelspacing=0.2)


def iou_bars(scores: Mapping[str, float], axes: Axes) -> None:
    """A bar per class with its intersection over union in 0..1."""
    bars = axes.barh(list(scores), list(scores.values()), color=COLORS[0])
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("intersection over union")
