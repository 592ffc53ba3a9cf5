"""The PNGs of how tasks were balanced: their weights over the steps, and how their gradients agreed."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from mtl_lightning.analysis.figures import VAL, clean, plain, save
from mtl_lightning.tasks.drawing import GREY

if TYPE_CHECKING:
    from pandas import DataFrame, Series

TOGETHER = 10
"""Tasks whose lines can be told apart in one chart; of more each has a chart of its own."""
LONG = 30
"""Points from which on a noisy line is drawn smoothed, too."""
WIDE = 20.0
"""Between the largest and the smallest weights, from which on the axis is logarithmic."""


def plain_number(value: float, position: float) -> str:
    """For a logarithmic axis: powers of ten are formulas otherwise."""
    return f"{value:g}"


def balancing(metrics: Path, tasks: Sequence[str], folder: Path) -> None:
    """``weights.png``, where weights changed, and ``gradients.png``, where gradients were measured.

    Args:
        metrics: the run's metrics.csv.
        tasks: in the order of tables.
        folder: takes the pictures.
    """
    # It takes half a second to import, which `--help` has no need of.
    import pandas as pd

    table = pd.read_csv(metrics)
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
    figure.suptitle("weight of each task (the method's, times the fixed one); thin: as logged", fontsize=10, x=0.01, ha="left")
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


def gradients_of(table: "DataFrame", kind: str) -> "DataFrame":
    """The epoch means of ``train/gradient/{kind}``: a row an epoch, a column a name."""
    start = f"train/gradient/{kind}"
    rows = table[table["name"].str.startswith(start)]
    wide = rows.pivot_table(index="epoch", columns="name", values="value", aggfunc="last")
    return wide.rename(columns=lambda name: name[len(start) :].strip("/"))


@plain
def gradients(table: "DataFrame", tasks: Sequence[str], path: Path) -> None:
    """Mean cosines, norms and conflicts of the tasks' gradients, if they were measured.

    Args:
        table: the run's metrics.csv.
        tasks: in the order of tables.
        path: the PNG.
    """
    cosines, norms, conflicts = (gradients_of(table, kind) for kind in ("cosine/", "norm/", "conflicts"))
    names = [name for name in tasks if name in norms]
    if len(names) < 2 or cosines.empty:
        return
    cell = 0.62 if len(names) <= 6 else 0.46 if len(names) <= 16 else 0.34
    side = max(2.6, cell * len(names))
    bars = 2.2 + side / 8
    ratios: dict[str, Any] = {"width_ratios": [side, bars], "height_ratios": [side, 1.4]}
    figure = Figure(figsize=(side + bars + 1.2, side + 1.4 + 1.8), layout="constrained")
    places = figure.subplot_mosaic([["cosines", "norms"], ["conflicts", "conflicts"]], gridspec_kw=ratios)
    _heat_map(places["cosines"], cosines, names)
    _norms(places["norms"], norms, names)
    _conflicts(places["conflicts"], conflicts, cosines)
    save(figure, path)


def _heat_map(axes: Axes, cosines: "DataFrame", names: Sequence[str]) -> None:
    values = np.full((len(names), len(names)), np.nan)
    for pair, value in cosines.ffill().iloc[-1].items():
        i, j = (names.index(name) for name in str(pair).split("/"))
        values[i, j] = values[j, i] = value
    # The strongest colour is that of the largest cosine: most are small, and the sign matters most.
    top = max(0.05, float(np.nanmax(np.abs(values))))
    axes.imshow(values, cmap="RdBu", vmin=-top, vmax=top, aspect="auto")
    size = 8 if len(names) <= 6 else 6.5 if len(names) <= 16 else 5.5
    for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
        dark = abs(values[i, j]) > 0.65 * top
        axes.text(
            j,
            i,
            cosine_text(values[i, j], 2 if top >= 0.1 else 3),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if dark else "black",
        )
    turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(names) <= 16 else {"rotation": 90}
    axes.set_xticks(range(len(names)), names, **turn)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=size + 0.5, length=0)
    axes.set_facecolor("#eaeef2")
    axes.set_title(f"mean cosine of gradients, epoch {cosines.index[-1]}", fontsize=9, loc="left")


def cosine_text(value: float, digits: int = 2) -> str:
    """So many digits behind the point, and no 0 before it."""
    text = f"{value:.{digits}f}"
    return "0" if float(text) == 0 else text.replace("0.", ".", 1).replace("-", "\N{MINUS SIGN}")


def _norms(axes: Axes, norms: "DataFrame", names: Sequence[str]) -> None:
    known = norms[list(names)]
    rows = range(len(names))
    first, last = known.bfill().iloc[0], known.ffill().iloc[-1]
    if len(known) > 1:
        axes.hlines(rows, known.min(), known.max(), color="#d0d7de", linewidth=2)
        axes.scatter(first, rows, s=18, facecolor="white", edgecolor=GREY, zorder=3, label=f"epoch {known.index[0]}")
    axes.scatter(last, rows, s=18, color=VAL, zorder=4, label=f"epoch {known.index[-1]}")
    low, high = float(known.min().min()), float(known.max().max())
    if high > 5 * low > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(plain_number)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.1 * high or 1)
    clean(axes)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(rows, [""] * len(names))
    axes.set_title("mean norm", fontsize=9, loc="left")
    axes.legend(fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=2, handletextpad=0)


def _conflicts(axes: Axes, conflicts: "DataFrame", cosines: "DataFrame") -> None:
    marker = "." if len(conflicts) < LONG else None
    axes.plot(
        conflicts.index, conflicts.iloc[:, 0], color="#cf222e", marker=marker, label="steps with a conflict of any two tasks"
    )
    if cosines.shape[1] > 1:
        pairs = (cosines < 0).sum(axis=1) / cosines.notna().sum(axis=1)
        axes.plot(pairs.index, pairs, color=GREY, marker=marker, label="pairs whose mean cosine is negative")
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("epoch", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("share of what was observed", fontsize=9, loc="left")
    clean(axes)
    axes.legend(fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=2)
