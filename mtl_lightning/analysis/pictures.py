"""The PNGs of a run folder: curves per task, and predictions beside the truth."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtl_lightning.analysis.balancing import TOGETHER, draw_weights, weights_of
from mtl_lightning.analysis.figures import TRAIN, VAL, clean, plain, save
from mtl_lightning.analysis.logged import read_table
from mtl_lightning.batch import Batch
from mtl_lightning.data.text.prepare import blank
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.drawing import short, show_input, show_nothing

CELL = 1.4
"""Inches of a square cell."""


@plain
def curves(metrics: Path, tasks: Mapping[str, Task], path: Path) -> None:
    """Losses and first metric of each task over the steps.

    Args:
        metrics: the run's metrics.csv.
        tasks: in the order of the rows.
        path: the PNG.
    """
    table = read_table(metrics)
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
    draw_weights(right, weights_of(table, list(tasks)))
    right.set_title("weights", fontsize=9, loc="left")
    for place in axes.flat:
        clean(place)
        if 0 < len(place.get_legend_handles_labels()[0]) <= TOGETHER:
            place.legend(fontsize=7, frameon=False)
    for place in axes[-1]:
        place.set_xlabel("step", fontsize=8)
    save(figure, path)


class Row(NamedTuple):
    """One sample for a picture, on the CPU and without padding.

    Attributes:
        image: [C, H, W] in 0..1; of several inputs the first that the row has.
        predictions: raw, by task; not of tasks whose picture the row lacks.
        targets: by task, None where there is no label.
        id: the sample's.
        inputs: of several inputs, the pictures that the row has.
        reads: task → input, where there are several.
        text: what is shown in place of the picture; None shows the picture.
    """

    image: Tensor
    predictions: dict[str, Tensor]
    targets: dict[str, Tensor | None]
    id: str = ""
    inputs: Mapping[str, Tensor] = MappingProxyType({})
    reads: Mapping[str, str] = MappingProxyType({})
    text: str | None = None

    def seen_by(self, task: str) -> Tensor | None:
        """The picture that a task reads; None where the row lacks it."""
        return self.inputs.get(self.reads[task]) if self.reads else self.image


def take_row(
    batch: Batch, predictions: Mapping[str, Tensor], tasks: Mapping[str, Task], row: int, reads: Mapping[str, str] | None = None
) -> Row:
    """Cut one row out of a batch.

    Args:
        batch: with several inputs or one.
        predictions: of the batch.
        tasks: of the run.
        row: which.
        reads: task → input; not looked at where there is one input.
    """
    height, width = batch.extent(row)

    def cut(tensor: Tensor, dense: bool = True) -> Tensor:
        return (tensor[row, ..., :height, :width] if dense else tensor[row]).detach().cpu()

    found = {"text": blank()} if batch.texts else batch.pictures(row)
    inputs = {name: picture.detach().cpu() for name, picture in found.items()}
    several = (reads or {}) if len(batch.inputs) > 1 else {}
    return Row(
        next(iter(inputs.values())),
        {
            name: cut(predictions[name].float(), task.target.dense)
            for name, task in tasks.items()
            if name in predictions and (not several or several[name] in inputs)
        },
        {
            name: cut(batch.targets[name], task.target.dense) if bool(batch.labelled[name][row]) else None
            for name, task in tasks.items()
        },
        batch.ids[row],
        {name: inputs[name] for name in batch.inputs if name in inputs} if several else {},
        several,
        batch.texts[row] if batch.texts else None,
    )


def draw_task(axes: Axes, name: str, task: Task, row: Row, predicted: bool) -> None:
    """A task's prediction for a row, or its label; an empty cell where the row lacks the picture that the task reads."""
    image = row.seen_by(name)
    if image is None:
        show_nothing(axes, row.image)
    else:
        task.draw(axes, image, row.predictions[name] if predicted else None, row.targets[name])


def cells(lines: int, widths: Sequence[float], title: float = 0.0) -> Any:
    """Square cells in even rows, whatever is written around them: axes [lines, columns].

    Args:
        lines: rows of cells.
        widths: of the columns, 1 is a cell.
        title: what is left free above a row for titles, 1 is a cell.
    """
    gap = 0.05
    mean = sum(widths) / len(widths)
    size = (CELL * (sum(widths) + gap * (len(widths) - 1)), CELL * (lines + (gap + title) * (lines - 1)))
    edges = {"left": 0, "right": 1, "bottom": 0, "top": 1}
    spaces = {"wspace": gap / mean, "hspace": gap + title, "width_ratios": widths}
    return Figure(figsize=size).subplots(lines, len(widths), squeeze=False, gridspec_kw=edges | spaces)


def legend(shown: Iterable[Axes], under: Axes) -> None:
    """One legend under a cell for all labelled artists of some cells."""
    handles: dict[str, Any] = {}
    for place in shown:
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
            handles.setdefault(short(str(label)), handle)
    if handles:
        where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, -0.03), "borderaxespad": 0, "borderpad": 0.2}
        under.legend(
            list(handles.values()), list(handles), fontsize=6.5, frameon=False, handlelength=1.5, labelspacing=0.3, **where
        )


@plain
def samples(rows: Sequence[Row], tasks: Mapping[str, Task], path: Path) -> None:
    """Predictions beside the truth; missing labels are shown as such.

    Args:
        rows: the samples, from top to bottom.
        tasks: two columns each.
        path: the PNG.
    """
    inputs = list(dict.fromkeys(rows[0].reads.values())) or ["input"]
    axes = cells(len(rows), [1.0] * (len(inputs) + 2 * len(tasks)))
    for place, row in zip(axes, rows, strict=True):
        for cell, name in zip(place, inputs, strict=False):
            if (image := row.inputs.get(name) if row.reads else row.image) is None:
                show_nothing(cell, row.image)
            else:
                show_input(cell, image, row.text)
        place[0].set_ylabel(short(row.id), fontsize=6)
        for position, (name, task) in enumerate(tasks.items()):
            draw_task(place[len(inputs) + 2 * position], name, task, row, True)
            draw_task(place[len(inputs) + 2 * position + 1], name, task, row, False)
    for cell, name in zip(axes[0], inputs, strict=False):
        cell.set_title(f"{name}\n", fontsize=8)
    for position, name in enumerate(tasks):
        first = len(inputs) + 2 * position
        axes[0, first].set_title(f"{name}\nprediction", fontsize=8)
        axes[0, first + 1].set_title(f"{name}\ntruth", fontsize=8)
        legend(axes[:, first : first + 2].flat, axes[-1, first])
    for place in axes.flat:
        place.set_xticks([])
        place.set_yticks([])
    save(axes[0, 0].figure, path)


@plain
def plot(draw: Callable[[Axes], None], task: str, picture: str, path: Path) -> None:
    """One picture of a task's own; its title begins with the task, then the title that was drawn or the picture's name."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    figure.suptitle(f"{task}: {axes.get_title() or picture}", fontsize=10)
    axes.set_title("")
    save(figure, path)
