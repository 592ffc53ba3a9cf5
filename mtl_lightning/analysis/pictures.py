"""The PNGs of a run folder: curves per task, and predictions beside the truth."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mtl_lightning.batch import Batch
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.drawing import show_image

TRAIN, VAL = "#9aa4b2", "#0969da"


def save(figure: Figure, path: Path) -> None:
    """Write a figure; no window system and no global state."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")


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


def samples(batch: Batch, predictions: Mapping[str, Tensor], tasks: Mapping[str, Task], path: Path, rows: int = 6) -> None:
    """Predictions beside the truth for the first rows of a batch; missing labels are shown as such.

    Args:
        batch: on the CPU.
        predictions: raw, for the batch.
        tasks: two columns each.
        path: the PNG.
        rows: how many samples.
    """
    rows = min(rows, len(batch))
    columns = 1 + 2 * len(tasks)
    figure = Figure(figsize=(1.5 * columns, 1.62 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        height, width = _extent(batch, row)
        image = batch.inputs["image"][row, :, :height, :width]
        show_image(axes[row, 0], image)
        for position, (name, task) in enumerate(tasks.items()):
            predicted, truth = axes[row, 1 + 2 * position], axes[row, 2 + 2 * position]
            dense = task.target.dense
            target = batch.targets[name][row] if bool(batch.labelled[name][row]) else None
            if target is not None and dense:
                target = target[..., :height, :width]
            prediction = predictions[name][row]
            task.draw(predicted, image, prediction[..., :height, :width] if dense else prediction, target)
            task.draw(truth, image, None, target)
            if row == 0:
                predicted.set_title(f"{name}\nprediction", fontsize=8)
                truth.set_title(f"{name}\ntruth", fontsize=8)
    axes[0, 0].set_title("input\n", fontsize=8)
    for place in axes.flat:
        place.set_xticks([])
        place.set_yticks([])
    save(figure, path)


def plot(draw: Callable[[Axes], None], path: Path) -> None:
    """One picture of a task's own."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    draw(figure.subplots())
    save(figure, path)


def _extent(batch: Batch, row: int) -> tuple[int, int]:
    height, width = batch.inputs["image"].shape[-2:]
    if batch.padding is None:
        return height, width
    kept = ~batch.padding[row]
    return int(kept.any(1).sum()), int(kept.any(0).sum())
