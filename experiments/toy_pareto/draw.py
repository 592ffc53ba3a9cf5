"""Trajectories over the mean of both objectives, a panel a method."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from problem import STARTS, Array, objectives

COLORS = ("#d1495b", "#00798c", "#edae49", "#5b5f97", "#3a7d44")
"""Of the starts."""
SIDE = 10.5


def figure(names: Sequence[str], trajectories: Array, front: Array, scale: float, file: Path) -> None:
    """Draw.

    Args:
        names: of the methods.
        trajectories: [methods, starts, n, 2].
        front: [m, 2], the Pareto set.
        scale: of the first objective.
        file: PNG to write.
    """
    columns = min(8, len(names))
    rows = -(-len(names) // columns)
    panels = plt.subplots(rows, columns, figsize=(1.9 * columns, 2.05 * rows), sharex=True, sharey=True, squeeze=False)
    picture, axes = panels
    grid = np.stack(np.meshgrid(*[np.linspace(-SIDE, SIDE, 300)] * 2), -1)
    mean = objectives(grid, scale)[0].mean(-1)
    for axis, name, trajectory in zip(axes.flat, names, trajectories, strict=False):
        axis.contour(grid[..., 0], grid[..., 1], mean, levels=14, cmap="Greys", linewidths=0.5, alpha=0.7)
        axis.plot(*front.T, color="black", linewidth=4, alpha=0.3, solid_capstyle="butt")
        for path, start, color in zip(trajectory, STARTS, COLORS, strict=True):
            axis.plot(*path.T, color=color, linewidth=1.3)
            axis.plot(*start, "o", color=color, markersize=3.5)
            axis.plot(*path[-1], "*", color=color, markersize=8, markeredgecolor="black", markeredgewidth=0.5, zorder=5)
        axis.set_title(name, fontsize=9, pad=3)
        axis.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), xticks=(-7, 0, 7), yticks=(-8, 0, 8))
        axis.tick_params(labelsize=7)
    for axis in list(axes.flat)[len(names) :]:
        axis.set_visible(False)
    picture.tight_layout(pad=0.4, h_pad=0.7)
    picture.savefig(file, dpi=110)
    plt.close(picture)
    # Lines in few colours: a quarter of the bytes.
    with Image.open(file) as drawn:
        drawn.convert("RGB").quantize(64).save(file, optimize=True)
