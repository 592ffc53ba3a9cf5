"""The PNG of gates, stitches and learnt branches: each table in colours, and its numbers over the epochs."""

from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from mtl_lightning.analysis.figures import clean, plain, save
from mtl_lightning.analysis.logged import read_table
from mtl_lightning.architectures.base import Table

if TYPE_CHECKING:
    from pandas import DataFrame

LOGGED = 256
"""Numbers of a table that are logged; a larger table is only drawn."""
LINES, CHARTS = 10, 8
"""Lines in a chart, and charts (one a row of a table) that are drawn over the epochs."""
WRITTEN = 150
"""Cells of a table that have their number in them."""
OTHERS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#666666")
"""Colours of what is no task: experts, branches."""
CELL = 0.46
"""Inches of a cell's side."""


def record(tables: Mapping[str, Table]) -> dict[str, float]:
    """What is logged: ``sharing/{table}/{row}/{column}``."""
    found: dict[str, float] = {}
    for name, table in tables.items():
        if table.values.numel() <= LOGGED:
            values = table.values.tolist()
            for row, numbers in zip(table.rows, values, strict=True):
                pairs = zip(table.columns, numbers, strict=True)
                found |= {f"sharing/{name}/{row}/{column}": number for column, number in pairs if not isnan(number)}
    return found


@plain
def sharing_picture(tables: Mapping[str, Table], metrics: Path, path: Path) -> None:
    """A line a table: the table as it is, right of it a chart a row over the epochs where there are few numbers.

    Args:
        tables: at least one.
        metrics: the run's metrics.csv, which may not be there.
        path: the PNG.
    """
    past = _past(tables, metrics)
    # Without lines, tables stand side by side.
    across = 1 if past else min(3, len(tables))
    lines = [list(tables)[start : start + across] for start in range(0, len(tables), across)]
    sizes = {name: _size(table) for name, table in tables.items()}
    heights = [max(max(sizes[name][1] for name in line), 1.9 if set(line) & set(past) else 0.0) for line in lines]
    left = max(sum(sizes[name][0] for name in line) for line in lines)
    charts = max((len(tables[name].rows) for name in past), default=0)
    width = left + (1.75 * charts + 0.9 if charts else 0.0)
    figure = Figure(figsize=(width, sum(heights)))
    parts = figure.subfigures(len(lines), 1, height_ratios=heights, squeeze=False)
    for (part,), line, height in zip(parts, lines, heights, strict=True):
        x = 0.0
        for name in line:
            wide, high = sizes[name]
            _heat_map(part, tables[name], name, (x, wide, high), (width, height))
            x += wide
            if name in past:
                _charts(part, tables[name], name, past[name], left, (width, height))
    save(figure, path)


def _past(tables: Mapping[str, Table], metrics: Path) -> dict[str, "DataFrame"]:
    """The logged numbers of each table that has few, over the epochs, if there are several."""
    few = {name: table for name, table in tables.items() if len(table.rows) <= CHARTS and len(table.columns) <= LINES}
    if not few or not metrics.exists():
        return {}
    logged = read_table(metrics)
    logged = logged[logged["name"].str.startswith("sharing/")]
    wide = logged.pivot_table(index="step", columns="name", values="value", aggfunc="last")
    found = {}
    for name, table in few.items():
        columns = [f"sharing/{name}/{row}/{column}" for row in table.rows for column in table.columns]
        there = wide.reindex(columns=columns).dropna(how="all")
        if len(there) > 1:
            found[name] = there
    return found


def _size(table: Table) -> tuple[float, float]:
    """Inches that a heat map takes, its words and its bar included."""
    names = 0.075 * max(map(len, table.rows))
    slanted = 0.055 * max(map(len, table.columns))
    cell = _cell(table)
    return max(2.2, cell * len(table.columns) + names + 1.0), cell * len(table.rows) + slanted + 0.75


def _cell(table: Table) -> float:
    return CELL if table.values.numel() <= WRITTEN else max(0.13, 5.0 / max(table.values.shape))


def _heat_map(part: SubFigure, table: Table, name: str, place: tuple[float, float, float], whole: tuple[float, float]) -> None:
    """One table, in inches within a line of the figure."""
    values, cell = table.values.double().cpu().numpy(), _cell(table)
    (x, _, _), (width, height) = place, whole
    across, down = cell * values.shape[1], cell * values.shape[0]
    start = x + 0.075 * max(map(len, table.rows)) + 0.15
    bottom = height - 0.4 - down
    axes = part.add_axes((start / width, bottom / height, across / width, down / height))
    # Shares in 0..1 have the colours of that whole range, so that equal ones look equal in all tables.
    largest = max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))
    negative = bool((values < -1e-3 * largest).any())
    shades: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    image = axes.imshow(values, **(shades if negative else {"cmap": "Blues", "vmin": 0.0, "vmax": largest}))
    axes.set_xticks(range(values.shape[1]), table.columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(values.shape[0]), table.rows)
    axes.tick_params(labelsize=7 if cell > 0.2 else 5, length=0)
    for spine in axes.spines.values():
        spine.set_color("#d0d7de")
    axes.set_title(name.replace("_", " "), fontsize=9, loc="left")
    if values.size <= WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if isnan(value):
                continue
            dark = abs(value) > 0.6 * largest
            axes.text(column, row, _short(value), ha="center", va="center", fontsize=6.5, color="white" if dark else "#1f2328")
    else:
        bar = part.add_axes(((start + across + 0.1) / width, bottom / height, 0.1 / width, down / height))
        part.colorbar(image, cax=bar).ax.tick_params(labelsize=6)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.5 else f"{value:.2f}".removeprefix("-" if abs(value) < 0.005 else "")


def _charts(part: SubFigure, table: Table, name: str, past: "DataFrame", left: float, whole: tuple[float, float]) -> None:
    """A chart a row, a line a column, from ``left`` inches on."""
    (width, height), each = whole, 1.75
    first = left + 0.35
    low, high = float(np.nanmin(past)), float(np.nanmax(past))
    margin = 0.06 * (high - low) or 0.05
    # The colours of tasks are for tasks.
    tasks = bool(set(table.columns) & set(table.rows))
    colors = [f"C{place % 10}" if tasks else OTHERS[place % len(OTHERS)] for place in range(len(table.columns))]
    axes: Axes | None = None
    for number, row in enumerate(table.rows):
        at = ((first + number * each) / width, 0.42 / height, (each - 0.2) / width, (height - 0.82) / height)
        axes = part.add_axes(at)
        for column, color in zip(table.columns, colors, strict=True):
            line = past[f"sharing/{name}/{row}/{column}"].dropna()
            axes.plot(line.index, line, color=color, label=column, linewidth=1.3, marker="." if len(line) < 30 else None)
        axes.set_ylim(low - margin, high + margin)
        clean(axes)
        if number:
            axes.tick_params(labelleft=False)
        axes.set_title(row, fontsize=8, loc="left")
        axes.set_xlabel("step", fontsize=7, labelpad=1)
    assert axes is not None
    axes.legend(fontsize=6.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1.2)
