"""The few drawing habits all tasks share."""

from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

RIGHT, WRONG = "#1a7f37", "#cf222e"
GUESS = "#0969da"
"""What is predicted where nothing says whether it is right (a box, a hand)."""
GREY = "#57606a"
WIDTH, LINES = 16, 9
"""Characters and lines of the largest letters that fit into a cell."""
SIZES = (8, 7, 6, 5, 4)
NAME = 26
"""Characters of a sample's name that fit beside or over a cell."""


def short(name: str) -> str:
    """The end of a sample's name, which tells more than its beginning."""
    return name if len(name) <= NAME else "…" + name[1 - NAME :]


def number(value: float, digits: int = 4) -> str:
    """A number in so many significant digits, with an exponent only if it is very large or very small."""
    if value and not 1e-5 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    return np.format_float_positional(value, precision=digits, unique=False, fractional=False, trim="-")


def resize(axes: Axes, width: float, height: float) -> None:
    """Give a chart's figure as many inches as what is drawn needs."""
    if isinstance(axes.figure, Figure):
        axes.figure.set_size_inches(width, height)


def _frame(axes: Axes, image: Tensor, ground: str) -> None:
    """A square cell with the picture in its middle: rows are even and words fit, however tall or flat pictures are."""
    height, width = image.shape[-2:]
    x, y, half = (width - 1) / 2, (height - 1) / 2, max(height, width) / 2
    axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half), aspect="equal", facecolor=ground, xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#d0d7de", linewidth=0.6)


def show_nothing(axes: Axes, image: Tensor) -> None:
    """An empty cell in the place of a picture that a sample lacks.

    Args:
        axes: where.
        image: of the sample's size, for the frame.
    """
    _frame(axes, image, "#ffffff")
    axes.text(0.5, 0.5, "no picture", ha="center", va="center", transform=axes.transAxes, color=GREY, fontsize=SIZES[1])


def show_image(axes: Axes, image: Tensor, dim: float = 0.0) -> None:
    """Show a picture in the middle of a square cell, without ticks.

    Args:
        axes: where.
        image: [C, H, W] in 0..1, one or three channels.
        dim: 0 leaves it, 1 makes it white.
    """
    picture = image.detach().float().cpu().clamp(0, 1)
    picture = picture.expand(3, -1, -1) if picture.shape[0] == 1 else picture
    axes.imshow((picture * (1 - dim) + dim).permute(1, 2, 0).numpy(), interpolation="nearest")
    _frame(axes, image, "#f6f8fa")


def show_input(axes: Axes, image: Tensor, text: str | None) -> None:
    """Show a picture, or, where there is one, a text."""
    if text is None:
        show_image(axes, image)
    else:
        write(axes, image, text)


def no_label(axes: Axes, image: Tensor) -> None:
    """Say that this row has no label for the task."""
    write(axes, image, "no label", GREY)
    axes.set_facecolor("0.93")


def write(axes: Axes, image: Tensor, text: str, color: str = "black", unknown: str = "") -> None:
    """Write a few lines in the middle of a blank cell; what is too long is wrapped, then written smaller, then cut.

    Args:
        axes: where.
        image: the row's picture [C, H, W].
        text: the lines.
        color: of the lines.
        unknown: further lines, in grey.
    """
    _frame(axes, image, "white")
    size, lines, grey = SIZES[0], [""], [""]
    for size in SIZES:
        lines, grey = (_wrapped(part, WIDTH * SIZES[0] // size) for part in (text, unknown))
        if len(lines) + len(grey) <= LINES * SIZES[0] // size:
            break
    for part, tone, up in ((lines, color, len(grey)), (grey, GREY, -len(lines))):
        if part:
            words = "\n".join(part[: LINES * SIZES[0] // size])
            style: dict[str, Any] = {"ha": "center", "va": "center", "color": tone, "fontsize": size}
            axes.annotate(words, (0.5, 0.5), (0, 0.6 * size * up), "axes fraction", "offset points", **style)


def _wrapped(text: str, width: int) -> list[str]:
    lines = [part for line in text.splitlines() for part in wrap(line.replace("_", "_ "), width) or [""]]
    return [line.replace("_ ", "_") for line in lines]
