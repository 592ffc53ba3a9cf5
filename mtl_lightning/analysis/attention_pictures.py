"""The PNG of where each task looks: its attention over some pictures."""

import textwrap
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from mtl_lightning.analysis.figures import plain, save
from mtl_lightning.analysis.pictures import cells
from mtl_lightning.tasks.drawing import short, show_image

ACROSS = 11
"""Cells side by side; of more tasks a picture takes several lines."""
TOKENS = 16
"""Words of a text that are written into its cells."""
SEVERAL = 12
"""Cells up to which each level has one of its own; of more the levels' mean is shown."""


class Look(NamedTuple):
    """One row's attention, on the CPU.

    Attributes:
        id: the sample's.
        image: [C, H, W] in 0..1, padding included; None for a text.
        maps: by task [h, w] in 0..1, finest first.
        extent: height and width of the picture without padding; of a text 1 and the number of its tokens.
        words: of a text.
    """

    id: str
    image: Tensor | None
    maps: Mapping[str, Sequence[Tensor]]
    extent: tuple[int, int]
    words: str = ""


@plain
def attention_picture(looks: Sequence[Look], path: Path) -> None:
    """A line a picture: itself, then each task's attention laid over it; colours reach from a column's lowest to its highest.

    Args:
        looks: at least one.
        path: the PNG.
    """
    shown = [_columns(look) for look in looks]
    titles = list(dict.fromkeys(title for columns in shown for title in columns))
    ranges = {title: _range([columns[title] for columns in shown if title in columns]) for title in titles}
    wide = min(ACROSS, 1 + len(titles))
    each = ceil(len(titles) / (wide - 1))
    axes = cells(each * len(looks), [1.0] * wide, title=0.32 if each > 1 else 0.0)
    for place in axes.flat:
        place.set_axis_off()
    for number, (look, columns) in enumerate(zip(looks, shown, strict=True)):
        first = axes[number * each, 0]
        first.set_axis_on()
        _picture(first, look)
        first.set_ylabel(short(look.id), fontsize=6)
        for position, title in enumerate(titles):
            place = axes[number * each + position // (wide - 1), 1 + position % (wide - 1)]
            if number == 0 or each > 1:
                low, high = ranges[title]
                place.set_title(f"{title}\n{low:.3f} to {high:.3f}", fontsize=7)
            if title in columns:
                place.set_axis_on()
                _overlay(place, look, columns[title], ranges[title])
    save(axes[0, 0].figure, path)


def _columns(look: Look) -> dict[str, Tensor]:
    """What is shown, in the size of the picture without padding."""
    height, width = look.extent
    whole = next(iter(look.maps.values()))[0] if look.image is None else look.image
    size = (whole.shape[-2], whole.shape[-1])

    def large(level: Tensor) -> Tensor:
        # Nearest: the cells are what the network sees.
        return F.interpolate(level[None, None], size=size, mode="nearest")[0, 0, :height, :width]

    found: dict[str, Tensor] = {}
    several = sum(map(len, look.maps.values())) <= SEVERAL
    for task, levels in look.maps.items():
        if several and len(levels) > 1:
            found |= {f"{task}, map {number}": large(level) for number, level in enumerate(levels, start=1)}
        else:
            found[task] = torch.stack([large(level) for level in levels]).mean(0)
    return found


def _range(maps: Sequence[Tensor]) -> tuple[float, float]:
    return min(float(one.min()) for one in maps), max(float(one.max()) for one in maps)


def _cut(look: Look) -> Tensor:
    assert look.image is not None
    return look.image[:, : look.extent[0], : look.extent[1]]


def _picture(axes: Axes, look: Look) -> None:
    if look.image is not None:
        show_image(axes, _cut(look))
    else:
        axes.set(xticks=[], yticks=[], facecolor="white")
        lines = "\n".join(textwrap.wrap(look.words, 22)[:6]) or "text"
        axes.text(0.5, 0.5, lines, ha="center", va="center", transform=axes.transAxes, fontsize=6.5)


def _overlay(axes: Axes, look: Look, attention: Tensor, span: tuple[float, float]) -> None:
    """The grey picture in the shades of attention; a text as a strip of its tokens."""
    low, high = span
    options = {"cmap": "viridis", "vmin": low, "vmax": high if high > low else low + 1e-6}
    if look.image is None:
        axes.imshow(attention.numpy(), aspect="auto", **options)  # type: ignore[arg-type]
        axes.set_xticks([])
        tokens = look.words.split()
        # Where tokens are words, they have their names.
        if len(tokens) == attention.shape[-1] <= TOKENS:
            for place, (token, value) in enumerate(zip(tokens, attention[0].tolist(), strict=True)):
                color = "white" if value < (low + high) / 2 else "#1f2328"
                axes.text(place, 0, short(token), rotation=90, ha="center", va="center", fontsize=5.5, color=color)
        axes.set_yticks([])
        return
    show_image(axes, _cut(look).mean(0, keepdim=True), dim=0.2)
    axes.imshow(attention.numpy(), alpha=0.6, interpolation="nearest", **options)  # type: ignore[arg-type]
