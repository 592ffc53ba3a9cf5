"""A contact sheet: pictures beside what was predicted for them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from mtl_lightning.analysis.figures import plain, save
from mtl_lightning.analysis.pictures import cells as cell_grid
from mtl_lightning.analysis.pictures import legend
from mtl_lightning.data.prepare import Prepared
from mtl_lightning.data.text.prepare import PreparedText
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.drawing import short, show_input, show_nothing

ACROSS = 10
"""Cells side by side, about; where tasks are few, several pictures share a line."""


class Cell(NamedTuple):
    """One picture for the sheet, on the CPU.

    Attributes:
        name: shown over it.
        image: [C, H, W] in 0..1.
        predictions: raw, by task, without the batch dimension.
        seen: the picture that a task reads where it is another.
        text: what is shown in place of the picture; None shows the picture.
    """

    name: str
    image: Tensor
    predictions: Mapping[str, Tensor]
    seen: Mapping[str, Tensor] = MappingProxyType({})
    text: str | None = None

    @classmethod
    def of(cls, picture: Prepared | PreparedText, raw: Mapping[str, Tensor], reads: Mapping[str, str]) -> "Cell":
        """A picture, or several of one row, or a text, with the raw predictions."""
        seen = {task: part.image.cpu() for task in raw if (part := picture.seen_by(task, reads)) is not None}
        kept = {task: tensor.cpu() for task, tensor in raw.items()}
        return cls(picture.id, picture.image.cpu(), kept, seen, picture.text)


@plain
def contact_sheet(cells: Sequence[Cell], tasks: Mapping[str, Task], path: Path) -> None:
    """Write the sheet.

    Args:
        cells: the pictures in order.
        tasks: one cell each, right of the picture.
        path: the PNG.
    """
    each = 1 + len(tasks)
    beside = max(1, min(len(cells), ACROSS // each))
    lines = math.ceil(len(cells) / beside)
    # A narrow empty column keeps pictures that share a line apart.
    widths = ([1.0] * each + [0.12]) * beside
    axes = cell_grid(lines, widths, title=0.12)
    for place in axes.flat:
        place.set_axis_off()
    for number, cell in enumerate(cells):
        row = axes[number // beside, number % beside * (each + 1) :]
        show_input(row[0], cell.image, cell.text)
        row[0].set_title(short(cell.name), fontsize=6)
        for place, (task, kind) in zip(row[1:], tasks.items(), strict=False):
            if task in cell.predictions:
                kind.draw(place, cell.seen.get(task, cell.image), cell.predictions[task], None)
            else:
                show_nothing(place, cell.image)
            place.set_title(task, fontsize=6)
        for place in row[:each]:
            place.set_axis_on()
    for column in range(1, each):
        legend(axes[:, column :: each + 1].flat, axes[-1, column])
    save(axes[0, 0].figure, path)
