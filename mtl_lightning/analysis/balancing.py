"""The PNGs of how tasks were balanced: their weights over the steps, beside how their gradients agreed."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mtl_lightning.analysis.agreement import gradients
from mtl_lightning.analysis.figures import clean, plain, plain_number, save
from mtl_lightning.analysis.logged import read_table

if TYPE_CHECKING:
    from pandas import DataFrame, Series

TOGETHER = 10
"""Tasks whose lines can be told apart in one chart; of more each has a chart of its own."""
LONG = 30
"""Points from which on a noisy line is drawn smoothed, too."""
WIDE = 20.0
"""Between the largest and the smallest weights, from which on the axis is logarithmic."""


def balancing(metrics: Path, tasks: Sequence[str], folder: Path) -> None:
    """``weights.png``, where weights changed, and ``gradients.png``, where gradients were measured.

    Args:
        metrics: the run's metrics.csv.
        tasks: in the order of tables.
        folder: takes the pictures.
    """
    table = read_table(metrics)
    all_weights(table, tasks, folder / "weights.png")
    gradients(table, tasks, folder / "gradients.png")


def weights_of(table: "DataFrame", tasks: Sequence[str]) -> "DataFrame":
    """The logged weights, a column a task over the steps; a 0 (a task that was absent, or counted nothing) is left out."""
    rows = table[table["name"].isin([f"weight/{name}" for name in tasks])]
    wide = rows.pivot_table(index="step", columns="name", values="value", aggfunc="last").rename(columns=lambda name: name[7:])
    return wide[[name for name in tasks if name in wide]].where(lambda values: values != 0).dropna(axis=1, how="all")


def vary(weights: "DataFrame") -> bool:
    """Whether any weight ever was another one."""
    spans = weights.max() - weights.min()
    return bool((spans > 1e-6 * weights.abs().max()).any())


class Line(NamedTuple):
    """A task's weights.

    Attributes:
        raw: as logged.
        shown: the same, or smoothed.
        smoothed: whether it is.
    """

    raw: "Series"
    shown: "Series"
    smoothed: bool


def draw_weights(axes: Axes, weights: "DataFrame") -> None:
    """All lines over the steps in one chart."""
    log = set_scale(axes, weights)
    for position, name in enumerate(weights):
        _draw_line(axes, str(name), line_of(weights[name], log), position)


def _draw_line(axes: Axes, name: str, line: Line, position: int) -> None:
    color = f"C{position % 10}"
    if line.smoothed:
        axes.plot(line.raw.index, line.raw, color=color, linewidth=0.5, alpha=0.3)
    axes.plot(line.shown.index, line.shown, color=color, linewidth=1.5, label=name, marker="." if len(line.raw) < LONG else None)


def set_scale(axes: Axes, weights: "DataFrame") -> bool:
    """A logarithmic axis where weights span orders of magnitude; around 0 where some are negative. Gives whether log it is."""
    sizes = np.abs(weights.to_numpy())
    sizes = sizes[np.isfinite(sizes)]
    low, high = np.quantile(sizes, [0.02, 0.98]) if len(sizes) else (1.0, 1.0)
    if not high > WIDE * low:
        return False
    if bool((weights < 0).to_numpy().any()):
        axes.set_yscale("symlog", linthresh=float(np.median(sizes)), linscale=0.7)
        axes.yaxis.set_major_formatter(plain_number)
        return False
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(plain_number)
    return True


def line_of(logged: "Series", log: bool) -> Line:
    """A long and noisy line becomes its running mean (of its logarithms for a logarithmic axis)."""
    raw = logged.dropna()
    values = np.log(raw) if log else raw
    if len(raw) < LONG or not values.diff().std() > 0.25 * values.std():
        return Line(raw, raw, False)
    mean = values.rolling(max(5, len(raw) // 20), center=True, min_periods=1).mean()
    return Line(raw, np.exp(mean) if log else mean, True)


@plain
def all_weights(table: "DataFrame", tasks: Sequence[str], path: Path) -> None:
    """Weights over the steps, if any of them ever changed.

    Args:
        table: the run's metrics.csv.
        tasks: in the order of tables.
        path: the PNG.
    """
    weights = weights_of(table, tasks)
    if weights.shape[1] < 2 or not vary(weights):
        return
    figure = _in_one(weights) if weights.shape[1] <= TOGETHER else _in_many(weights)
    # Of a smoothed task there are two lines.
    smoothed = sum(len(axes.lines) for axes in figure.axes) > weights.shape[1]
    told = "weight of each task (the method's, times the fixed one)" + ("; thin: as logged" if smoothed else "")
    figure.suptitle(told, fontsize=10, x=0.01, ha="left")
    save(figure, path)


def _in_one(weights: "DataFrame") -> Figure:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    draw_weights(axes, weights)
    clean(axes)
    axes.set_xlabel("step", fontsize=8)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _in_many(weights: "DataFrame") -> Figure:
    columns = 4 if weights.shape[1] <= 16 else 6
    rows = ceil(weights.shape[1] / columns)
    figure = Figure(figsize=(2.1 * columns, 1.35 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    log = set_scale(grid[0, 0], weights)
    lines = {str(name): line_of(weights[name], log) for name in weights}
    for position, (place, (name, line)) in enumerate(zip(grid.flat, lines.items(), strict=False)):
        others = [np.column_stack([other.shown.index, other.shown]) for key, other in lines.items() if key != name]
        place.add_collection(LineCollection(others, colors="#d0d7de", linewidths=0.6))
        _draw_line(place, name, line, position)
        clean(place)
        place.set_title(name, fontsize=8, loc="left", pad=2)
    for place in list(grid.flat)[len(lines) :]:
        place.set_axis_off()
    figure.supxlabel("step", fontsize=8)
    return figure
