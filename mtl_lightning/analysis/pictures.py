"""The PNGs of a run folder: curves per task, and predictions beside the truth."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mtl_lightning.batch import Batch
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.drawing import show_image

plain = matplotlib.rc_context({"text.parse_math": False})
"""Names are names: a ``$`` in one begins no formula."""
TRAIN, VAL = "#9aa4b2", "#0969da"


def save(figure: Figure, path: Path) -> None:
    """Write a figure; no window system and no global state."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")


@plain
def curves(metrics: Path, tasks: Mapping[str, Task], path: Path) -> None:
    """Losses and first metric of each task over the steps.

    Args:
        metrics: the run's metrics.csv.
        tasks: in the order of the rows.
        path: the PNG.
    """
    table = pd.read_csv(metrics)
    figure = Figure(figsize=(9, 2.1 * (len(tasks) + 1)), layout="constrained")
    axes = figure.subplots(len(tasks) + 1, 2, squeeze=False)

    def draw(place: Axes, name: str, label: str, color: str) -> bool:
        rows = table[table["name"] == name]
        if len(rows):
            place.plot(rows["step"], rows["value"], color=color, label=label, marker="." if len(rows) < 30 else None)
        return bool(len(rows))

    for (left, right), (name, task) in zip(axes, tasks.items(), strict=False):
        draw(left, f"train/{name}/loss", "train", TRAIN)
        draw(left, f"val/{name}/loss", "validation", VAL)
        left.set_title(f"{name}: loss", fontsize=9, loc="left")
        metric = next(iter(task.measures))
        if not draw(right, f"val/{name}/{metric}", "validation", VAL):
            right.text(0.5, 0.5, "no validation label", ha="center", va="center", transform=right.transAxes, color="#57606a")
        right.set_title(f"{name}: {metric}", fontsize=9, loc="left")
    left, right = axes[-1]
    draw(left, "val/score", "score", VAL)
    left.set_title("score: mean skill over the trivial predictor", fontsize=9, loc="left")
    for position, name in enumerate(tasks):
        draw(right, f"weight/{name}", name, f"C{position}")
    right.set_title("weights", fontsize=9, loc="left")
    for place in axes.flat:
        place.grid(alpha=0.25)
        place.tick_params(labelsize=7)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
        if place.get_legend_handles_labels()[0]:
            place.legend(fontsize=7, frameon=False)
    for place in axes[-1]:
        place.set_xlabel("step", fontsize=8)
    save(figure, path)


class Row(NamedTuple):
    """One sample for a picture, on the CPU and without padding.

    Attributes:
        image: [C, H, W] in 0..1.
        predictions: raw, by task.
        targets: by task, None where there is no label.
    """

    image: Tensor
    predictions: dict[str, Tensor]
    targets: dict[str, Tensor | None]


def take_row(batch: Batch, predictions: Mapping[str, Tensor], tasks: Mapping[str, Task], row: int) -> Row:
    """Cut one row out of a batch."""
    height, width = batch.extent(row)

    def cut(tensor: Tensor, dense: bool = True) -> Tensor:
        return (tensor[row, ..., :height, :width] if dense else tensor[row]).detach().cpu()

    return Row(
        cut(batch.inputs["image"]),
        {name: cut(predictions[name].float(), task.target.dense) for name, task in tasks.items()},
        {
            name: cut(batch.targets[name], task.target.dense) if bool(batch.labelled[name][row]) else None
            for name, task in tasks.items()
        },
    )


@plain
def samples(rows: Sequence[Row], tasks: Mapping[str, Task], path: Path) -> None:
    """Predictions beside the truth; missing labels are shown as such.

    Args:
        rows: the samples, from top to bottom.
        tasks: two columns each.
        path: the PNG.
    """
    columns = 1 + 2 * len(tasks)
    figure = Figure(figsize=(1.5 * columns, 1.62 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for place, row in zip(axes, rows, strict=True):
        show_image(place[0], row.image)
        for position, (name, task) in enumerate(tasks.items()):
            task.draw(place[1 + 2 * position], row.image, row.predictions[name], row.targets[name])
            task.draw(place[2 + 2 * position], row.image, None, row.targets[name])
    axes[0, 0].set_title("input\n", fontsize=8)
    for position, name in enumerate(tasks):
        axes[0, 1 + 2 * position].set_title(f"{name}\nprediction", fontsize=8)
        axes[0, 2 + 2 * position].set_title(f"{name}\ntruth", fontsize=8)
    for place in axes.flat:
        place.set_xticks([])
        place.set_yticks([])
    save(figure, path)


@plain
def plot(draw: Callable[[Axes], None], path: Path) -> None:
    """One picture of a task's own."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    draw(figure.subplots())
    save(figure, path)
