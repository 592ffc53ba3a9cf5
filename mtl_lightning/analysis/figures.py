"""What all PNGs of a run folder share."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

plain = matplotlib.rc_context({"text.parse_math": False})
"""Names are names: a ``$`` in one begins no formula."""
TRAIN, VAL = "#9aa4b2", "#0969da"


def save(figure: Figure, path: Path) -> None:
    """Write a figure; no window system and no global state."""
    FigureCanvasAgg(figure)
    # A layout engine has left no empty border, and cutting it off means to draw everything twice.
    figure.savefig(path, dpi=110, bbox_inches=None if figure.get_layout_engine() else "tight", facecolor="white")


def clean(axes: Axes) -> None:
    """A light grid, small numbers, no box."""
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plain_number(value: float, position: float) -> str:
    """For a logarithmic axis: powers of ten are formulas otherwise."""
    return f"{value:g}"
