"""The PNG of who shares what: a lane a task, a box for each copy of a stage across the lanes of those who learn it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from mtl_lightning.analysis.figures import plain, save
from mtl_lightning.analysis.layout import Box, Column, Layout
from mtl_lightning.analysis.model_tables import short_count

INK, FAINT, SHARED = "#1f2328", "#57606a", "#8c99a8"
WIDE, THIN, GAP, EDGE = 0.86, 0.46, 0.24, 0.06
"""Inches: a stage, what is between stages, the way between two columns, what is left free around a box."""
ALL, SOME, ONE, FROZEN, ADDED = KINDS = ("learnt by all tasks", "by some", "by one", "not learning", "added by the architecture")
LOW = 0.2
"""Inches of the lowest box with a number in it; lower ones are drawn as one pile."""


@plain
def diagram(layout: Layout, title: str, path: Path) -> None:
    """Draw it.

    Args:
        layout: of :func:`~mtl_lightning.analysis.layout.lay_out`.
        title: above.
        path: the PNG.
    """
    count = len(layout.lanes)
    pitch = 0.78 if count <= 3 else 0.56 if count <= 7 else 0.4
    spread = [list(_beside(column.boxes)) for column in layout.columns]
    x, places = 1.0 + GAP, []
    for column, groups in zip(layout.columns, spread, strict=True):
        places.append(x)
        each = THIN if column.added else WIDE
        x += len(groups) * (each + EDGE) - EDGE + GAP
    end = x
    names = max(len(_name(lane)) for lane in layout.lanes)
    width, height = end + WIDE + 0.2 + 0.085 * max(6, names), count * pitch
    below, above = 0.42, 0.86
    figure = Figure(figsize=(width, height + above + below))
    axes = figure.add_axes((0, below / (height + above + below), 1, height / (height + above + below)))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    painter = _Painter(axes, layout, pitch)
    painter.ways(0.5, end + WIDE / 2)
    for told, lanes in layout.inputs:
        for run in _runs(lanes):
            painter.pile(0.12, 1.0 - 0.12, run, [told], "white", FAINT)
    for column, groups, left in zip(layout.columns, spread, places, strict=True):
        each = THIN if column.added else WIDE
        painter.heading(column, left + (len(groups) * (each + EDGE) - EDGE) / 2)
        for number, boxes in enumerate(groups):
            for box in boxes:
                painter.box(box, left + number * (each + EDGE), each, column.added)
    for lane, sizes in enumerate(layout.heads):
        painter.head(end, lane, sizes)
    axes.text(end + WIDE / 2, -0.1, "heads", ha="center", va="bottom", fontsize=8, color=INK)
    figure.text(0.12 / width, 1 - 0.1 / (height + above + below), title, fontsize=10, color=INK, ha="left", va="top")
    _legend(figure, painter.kinds, height + above + below, width)
    save(figure, path)


def _name(lane: Sequence[str]) -> str:
    return lane[0] if len(lane) == 1 else f"{len(lane)} more tasks"


def _runs(lanes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of neighbouring lanes."""
    start = previous = lanes[0]
    for lane in lanes[1:]:
        if lane != previous + 1:
            yield start, previous
            start = lane
        previous = lane
    yield start, previous


def _beside(boxes: Sequence[Box]) -> Iterator[list[Box]]:
    """Boxes that may stand below each other; those in the way go beside them."""
    left = list(boxes)
    while left:
        taken: set[int] = set()
        placed = []
        for box in left:
            spans = {lane for first, last in _runs(box.lanes) for lane in range(first, last + 1)}
            if not spans & taken:
                taken |= spans
                placed.append(box)
        left = [box for box in left if box not in placed]
        yield placed


def tint(color: str, share: float) -> tuple[float, float, float]:
    """A colour on white."""
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(color))
    return red, green, blue


class _Painter:
    """Draws into axes in inches, y from the top.

    Args:
        axes: where.
        layout: what.
        pitch: inches from lane to lane.
    """

    def __init__(self, axes: Axes, layout: Layout, pitch: float) -> None:
        self.axes, self.layout, self.pitch = axes, layout, pitch
        self.colors = {task: f"C{position % 10}" for position, task in enumerate(layout.tasks)}
        self.kinds: dict[str, Patch] = {}

    def lane_color(self, lane: int) -> str:
        names = self.layout.lanes[lane]
        return self.colors[names[0]] if len(names) == 1 else FAINT

    def ways(self, start: float, end: float) -> None:
        """A line a lane, from the input to the head, behind everything."""
        for lane in range(len(self.layout.lanes)):
            y = (lane + 0.5) * self.pitch
            self.axes.plot([start, end], [y, y], color=self.lane_color(lane), linewidth=1.4, alpha=0.55, zorder=0)

    def heading(self, column: Column, x: float) -> None:
        if column.added:
            title = column.title.replace(" ", "\n")
            self.axes.text(x, -0.1, title, ha="center", va="bottom", fontsize=6.5, color=FAINT, style="italic", linespacing=0.95)
            return
        self.axes.text(x, -0.24, column.title, ha="center", va="bottom", fontsize=8, color=INK)
        self.axes.text(x, -0.1, column.note, ha="center", va="bottom", fontsize=6, color=FAINT)

    def box(self, box: Box, x: float, width: float, added: bool) -> None:
        everyone, users = len(self.layout.tasks), len(box.tasks)
        if users == everyone > 1:
            kind, fill, edge = ALL, tint(SHARED, 0.4), SHARED
        elif users > 1 and len(box.lanes) > 1:
            parts = [to_rgb(self.colors[task]) for task in sorted(box.tasks)]
            red, green, blue = (sum(part[channel] for part in parts) / len(parts) for channel in range(3))
            edge = f"#{int(255 * red):02x}{int(255 * green):02x}{int(255 * blue):02x}"
            kind, fill = SOME, tint(edge, 0.3)
        else:
            edge = self.lane_color(box.lanes[0])
            kind, fill = ONE, tint(edge, 0.25)
        texts = [short_count(size) for size in box.sizes]
        if box.frozen:
            kind, fill = FROZEN, (1.0, 1.0, 1.0)
        self.kinds.setdefault(kind, Patch(facecolor=fill, edgecolor=edge, hatch="////" if box.frozen else None))
        if added:
            self.kinds.setdefault(ADDED, Patch(facecolor="white", edgecolor=FAINT, linestyle="--"))
        runs = list(_runs(box.lanes))
        if len(runs) > 1:
            first, last = box.lanes[0] + 0.5, box.lanes[-1] + 0.5
            self.axes.plot([x + width / 2] * 2, [first * self.pitch, last * self.pitch], color=edge, linewidth=3, zorder=1)
        for run in runs:
            self.pile(x, width, run, texts, fill, edge, dashed=added, hatch=box.frozen)

    def head(self, x: float, lane: int, sizes: Sequence[int]) -> None:
        color, names = self.lane_color(lane), self.layout.lanes[lane]
        text = short_count(sum(sizes)) if len(sizes) == 1 else _many([short_count(size) for size in sizes], sum(sizes))
        self.pile(x, WIDE, (lane, lane), [text], tint(color, 0.25), color)
        y = (lane + 0.5) * self.pitch
        weight = "bold" if len(names) == 1 else "normal"
        self.axes.text(x + WIDE + 0.1, y, _name(names), va="center", fontsize=8, color=color, fontweight=weight)

    def pile(
        self,
        x: float,
        width: float,
        run: tuple[int, int],
        texts: Sequence[str],
        fill: object,
        edge: str,
        dashed: bool = False,
        hatch: bool = False,
    ) -> None:
        """Copies below each other; where they would be too low, one box with more behind it."""
        first, last = run
        top, bottom = first * self.pitch + EDGE, (last + 1) * self.pitch - EDGE
        style = {"facecolor": fill, "edgecolor": edge, "linewidth": 0.9, "linestyle": "--" if dashed else "-"}
        number, folded = len(texts), (bottom - top) / len(texts) < LOW
        shown = 1 if folded else number
        # As many copies as tasks, as columns with stitches, stand in the lanes.
        apart = 2 * EDGE if number == last - first + 1 else EDGE
        each = (bottom - top + apart) / shown
        for copy in range(shown):
            y = top + copy * each
            shift = 0.035 if folded else 0.0
            size = (width - 2 * shift, each - apart - 2 * shift)
            for behind in (2, 1, 0) if folded else (0,):
                corner = (x + behind * shift, y + (2 - behind) * shift if folded else y)
                patch = FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.05", zorder=2, **style)  # type: ignore[arg-type]
                self.axes.add_patch(patch)
                if hatch:
                    patch.set_hatch("////")
            text = f"{number} x\n{texts[0]}" if folded and len(set(texts)) == 1 else f"{number}" if folded else texts[copy]
            if folded and size[1] < 0.3:
                text = text.replace("\n", " ")
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0} if hatch else None
            center = (x + size[0] / 2, y + (2 * shift if folded else 0) + size[1] / 2)
            font = 6 if width < WIDE else 7.5
            self.axes.text(*center, text, ha="center", va="center", fontsize=font, color=INK, zorder=3, bbox=box)


def _many(texts: Sequence[str], total: int) -> str:
    return f"{len(texts)} x {texts[0]}" if len(set(texts)) == 1 else f"{short_count(total)} in all"


def _legend(figure: Figure, kinds: dict[str, Patch], height: float, width: float) -> None:
    shown = {kind: kinds[kind] for kind in KINDS if kind in kinds}
    place = (0.06 / width, 0.05 / height)
    style = {"fontsize": 7, "frameon": False, "handlelength": 1.4, "columnspacing": 1.2, "ncols": len(shown)}
    figure.legend(list(shown.values()), list(shown), loc="lower left", bbox_to_anchor=place, **style)  # type: ignore[arg-type]
