"""The pictures of ``check``: a contact sheet of augmented training samples, and how labels are distributed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl_lightning.analysis.check.tallies import Shares, Tally
from mtl_lightning.analysis.figures import plain, save
from mtl_lightning.analysis.pictures import cells, draw_task, legend, take_row
from mtl_lightning.batch import Batch
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.drawing import short, show_input, show_nothing

WIDE = 14
"""Cells side by side, where several samples fit."""
BARS = 24
"""Names that a chart shows."""
CHARTS = 24
"""Charts in one picture."""
COLORS = {"train": "#0969da", "val": "#bf8700", "test": "#1a7f37"}


@plain
def contact_sheet(
    batches: Sequence[Batch], tasks: Mapping[str, Task], number: int, path: Path, reads: Mapping[str, str] | None = None
) -> int:
    """Samples as the network gets them, each with the labels it has; gives how many there are.

    Args:
        batches: in the order of the loader.
        tasks: a column each.
        number: of samples at most.
        path: the PNG.
        reads: task → input, where there are several; each has a cell.
    """
    places = [(batch, row) for batch in batches for row in range(len(batch))][:number]
    pictures = len(batches[0].inputs) if reads else 1
    width = pictures + len(tasks)
    blocks = max(1, min(WIDE // width, len(places)))
    lines = -(-len(places) // blocks)
    # A thin empty column after each sample.
    axes = cells(lines, ([1.0] * width + [0.15]) * blocks, title=0.22)
    for place in axes.flat:
        place.axis("off")
    for position, (batch, row) in enumerate(places):
        line, block = divmod(position, blocks)
        start = block * (width + 1)
        _draw_sample(axes[line, start : start + width].tolist(), batch, row, tasks, reads)
    for column in range(pictures, width):
        legend(axes[:, column :: width + 1].flat, axes[-1, column])
    save(axes[0, 0].figure, path)
    return len(places)


def _draw_sample(
    cells: Sequence[Axes], batch: Batch, row: int, tasks: Mapping[str, Task], reads: Mapping[str, str] | None
) -> None:
    height, width = batch.extent(row)
    taken = take_row(batch, {}, tasks, row, reads)
    shown = [taken.inputs.get(name) for name in batch.inputs] if taken.reads else [taken.image]
    for cell in cells:
        cell.axis("on")
    for cell, image, name in zip(cells, shown, batch.inputs, strict=False):
        if image is None:
            show_nothing(cell, taken.image)
        else:
            show_input(cell, image, taken.text)
        cell.set_title(name, fontsize=7)
    size = f"{width} words" if batch.texts else f"{width} x {height}"
    cells[0].set_title(f"{short(batch.ids[row])}\n{size}", fontsize=7)
    for cell, (name, task) in zip(cells[len(shown) :], tasks.items(), strict=True):
        draw_task(cell, name, task, taken, predicted=False)
        cell.set_title(name, fontsize=7)
        cell.set_xticks([])
        cell.set_yticks([])


@plain
def distributions(tallies: Mapping[str, Mapping[str, Tally]], path: Path) -> bool:
    """A chart per task (and number), at most 24: shares of classes, or histograms; False where there is none to draw."""
    seen: dict[str, Mapping[str, Tally]]
    seen = {name: {split: tally for split, tally in splits.items() if tally.labelled} for name, splits in tallies.items()}
    charts: list[tuple[str, Mapping[str, Tally], str | None]] = []
    for name, splits in seen.items():
        charts += [(name, splits, None)] if any(tally.shares() for tally in splits.values()) else []
        charts += [(name, splits, number) for number in _numbers(splits)]
    charts = charts[:CHARTS]
    if not charts:
        return False
    lines = -(-len(charts) // 2)
    figure = Figure(figsize=(11, 2.6 * lines), layout="constrained")
    axes = figure.subplots(lines, 2, squeeze=False)
    for place in axes.flat[len(charts) :]:
        place.axis("off")
    for place, (name, splits, number) in zip(axes.flat, charts, strict=False):
        if number is None:
            _bars(place, name, {split: shares for split, tally in splits.items() if (shares := tally.shares()) is not None})
        else:
            _histogram(place, name, number, splits)
        place.tick_params(labelsize=7)
        place.set_ylim(top=1.2 * place.get_ylim()[1])  # room for the legend
        place.legend(fontsize=7, frameon=False, ncols=3, loc="upper right")
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    save(figure, path)
    return True


def _numbers(splits: Mapping[str, Tally]) -> list[str]:
    return list(dict.fromkeys(spread.name for tally in splits.values() for spread in tally.spreads()))


def _bars(axes: Axes, task: str, splits: Mapping[str, Shares]) -> None:
    first = next(iter(splits.values()))
    shown = np.argsort(-first.counts, kind="stable")[:BARS] if len(first.names) > BARS else np.arange(len(first.names))
    places, width = np.arange(len(shown)), 0.8 / len(splits)
    for position, (split, shares) in enumerate(splits.items()):
        heights = 100 * shares.counts[shown] / np.maximum(1, shares.known[shown])
        axes.bar(places + (position - (len(splits) - 1) / 2) * width, heights, width, label=split, color=COLORS.get(split))
    names = [shorten(first.names[index], 18, placeholder="…") or first.names[index][:18] for index in shown]
    axes.set_xticks(places, names, rotation=30 if len(shown) > 4 else 0, ha="right" if len(shown) > 4 else "center")
    some = f" (the {len(shown)} most frequent of {len(first.names)})" if len(shown) < len(first.names) else ""
    axes.set_title(f"{task}: % of labelled {first.unit}{some}", fontsize=9, loc="left")


def _histogram(axes: Axes, task: str, number: str, splits: Mapping[str, Tally]) -> None:
    values = {split: spread.values for split, tally in splits.items() for spread in tally.spreads() if spread.name == number}
    together = np.concatenate(list(values.values()))
    edges = np.histogram_bin_edges(together, bins=30)
    for split, known in values.items():
        weights = np.full(len(known), 100 / len(known))
        axes.hist(known, edges.tolist(), weights=weights, histtype="step", label=split, color=COLORS.get(split), linewidth=1.4)
    axes.set_title(
        f"{task}: {number} (% of known values)" if number != task else f"{task} (% of known values)", fontsize=9, loc="left"
    )
