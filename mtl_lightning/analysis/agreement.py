"""The PNG of how the tasks' gradients agreed: cosines, norms and conflicts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from mtl_lightning.analysis.figures import VAL, clean, plain, plain_number, save
from mtl_lightning.tasks.drawing import GREY

if TYPE_CHECKING:
    from pandas import DataFrame


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
    marker = "." if len(conflicts) < 30 else None
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
