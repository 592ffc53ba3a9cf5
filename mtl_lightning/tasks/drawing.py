"""The few drawing habits all tasks share."""

from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

RIGHT, WRONG = "#1a7f37", "#cf222e"
WIDTH, LINES = 16, 6
"""Characters and lines that fit into a cell."""


def show_image(axes: Axes, image: Tensor, dim: float = 0.0) -> None:
    """Show a picture without ticks.

    Args:
        axes: where.
        image: [C, H, W] in 0..1, one or three channels.
        dim: 0 leaves it, 1 makes it white.
    """
    picture = image.detach().float().cpu().clamp(0, 1)
    picture = picture.expand(3, -1, -1) if picture.shape[0] == 1 else picture
    axes.imshow((picture * (1 - dim) + dim).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def no_label(axes: Axes, image: Tensor) -> None:
    """Say that this row has no label for the task."""
    axes.imshow(np.full((image.shape[-2], image.shape[-1], 3), 0.93))
    axes.text(0.5, 0.5, "no label", ha="center", va="center", transform=axes.transAxes, color="#57606a", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def write(axes: Axes, image: Tensor, text: str, color: str = "black") -> None:
    """Write a few lines in the middle of a cell, on a blank ground as large as the picture; what is too long is wrapped."""
    axes.imshow(np.ones((image.shape[-2], image.shape[-1], 3)))
    lines = [part for line in text.splitlines() for part in wrap(line.replace("_", "_ "), WIDTH) or [""]]
    lines = [line.replace("_ ", "_") for line in lines]
    size = min(8.0, 8 * LINES / max(1, len(lines)))
    axes.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", transform=axes.transAxes, color=color, fontsize=size)
    axes.set_xticks([])
    axes.set_yticks([])
