"""From the folders of the runs to a table and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from sizes import MATCHED, OTHERS, read

from mtl_lightning.analysis.delta import compare, delta_over_tasks

BLUE, GREY = "#0969da", "#6e7781"
TITLES = {"scenes": "Scenes: shape, segmentation, depth", "fashion": "Multi-Fashion+MNIST: garment, digit"}


class Point(NamedTuple):
    """An architecture's place in the picture: gains over single tasks by seed, and cost of a step."""

    gains: list[float]
    ratio: float


class Rows(NamedTuple):
    """Table and points by data set and architecture."""

    text: str
    points: dict[str, dict[str, Point]]


def tested(runs: Path, data: str, what: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The test split's summary of each seed that was run to its end."""
    folders = [runs / f"{data}-{what}-{seed}" for seed in seeds]
    return [json.loads((folder / "summary.json").read_text())["test"] for folder in folders if (folder / "done.json").exists()]


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and standard deviation where there are several."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def first(config: Mapping[str, Any], summaries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Each task's first metric, which decides its score."""
    return {task: next(iter(part["measures"])) for summary in summaries for task, part in summary["tasks"].items()}


def values(summaries: Sequence[Mapping[str, Any]], task: str, metric: str) -> list[float]:
    """Of all seeds."""
    return [float(summary["tasks"][task]["metrics"][metric]) for summary in summaries]


def table(runs: Path, chosen: Sequence[str], seeds: Sequence[int], cost: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Rows:
    """One table a data set, and the points of the picture."""
    parts, points = [], {}
    for data in chosen:
        config = read(data)
        alone = {task: tested(runs, data, task, seeds) for task in config["model"]["tasks"]}
        metric = first(config, [summary for found in alone.values() for summary in found])
        names = " | ".join(f"{task}, {metric[task]}" for task in alone)
        lines = [f"### {TITLES[data]}\n", f"| architecture | {names} | Δm, % ↑ | parameters | step | runs |"]
        lines.append("|---|" + "---:|" * (len(alone) + 4))
        singles = " | ".join(cell(values(found, task, metric[task]), 3) for task, found in alone.items())
        lines.append(f"| each task alone | {singles} | 0 | | | {'+'.join(str(len(found)) for found in alone.values())} |")
        bases = {task: averaged(found, task, metric[task]) for task, found in alone.items()}
        points[data] = {}
        for name in MATCHED | OTHERS:
            found = tested(runs, data, name, seeds)
            if not found:
                continue
            gains = [delta_over_tasks(compare(summary, bases, {task: [metric[task]] for task in bases})) for summary in found]
            points[data][name] = Point(gains, cost[data][name]["ratio"])
            scores = " | ".join(cell(values(found, task, metric[task]), 3) for task in alone)
            size, ratio = cost[data][name]["parameters"], cost[data][name]["ratio"]
            lines.append(f"| {name} | {scores} | {cell(gains)} | {size:,.0f} | {ratio:.2f} | {len(found)} |")
        parts.append("\n".join(lines))
    return Rows("\n\n".join(parts) + "\n", points)


def averaged(summaries: Sequence[Mapping[str, Any]], task: str, metric: str) -> dict[str, Any]:
    """One base out of those of several seeds."""
    entry = summaries[0]["tasks"][task]
    return {"tasks": {task: entry | {"metrics": {metric: fmean(values(summaries, task, metric))}}}}


PLACES = [
    (7, 4, "left"),
    (7, -11, "left"),
    (-7, 4, "right"),
    (-7, -11, "right"),
    (7, 16, "left"),
    (-7, 16, "right"),
    (7, -23, "left"),
]
"""Where a label may stand beside its point, in points."""


def label(place: Axes, name: str, at: tuple[float, float], colour: str, taken: list[Bbox]) -> None:
    """Write a name where it covers none that is there already."""
    for x, y, side in PLACES:
        text = place.annotate(name, at, xytext=(x, y), textcoords="offset points", fontsize=8, color=colour, ha=side)
        box = text.get_window_extent()
        if not any(box.overlaps(other) for other in taken) or (x, y, side) == PLACES[-1]:
            taken.append(box)
            return
        text.remove()


def draw(points: Mapping[str, Mapping[str, Point]], path: Path) -> None:
    """Gain over single-task networks against the cost of a step."""
    figure, axes = plt.subplots(1, len(points), figsize=(6.4 * len(points), 4.6), layout="constrained", squeeze=False)
    for place, (data, found) in zip(axes[0], points.items(), strict=True):
        for name, (gains, ratio) in found.items():
            matched = name in MATCHED
            spread = stdev(gains) if len(gains) > 1 else None
            style = {"fmt": "o", "color": BLUE} if matched else {"fmt": "D", "color": GREY}
            place.errorbar(ratio, fmean(gains), yerr=spread, ms=6, capsize=3, **style)
        place.axhline(0, color="#9aa4b2", linewidth=1)
        beside = place.get_yaxis_transform()
        place.text(0.99, 0, "each task alone ", transform=beside, ha="right", va="bottom", fontsize=8, color="#57606a")
        place.set_title(TITLES[data], loc="left", fontsize=10)
        place.set_xlabel("step time over hard sharing's (equal parameters)")
        place.set_ylabel("Δm over single-task networks, % (higher is better)")
        place.margins(x=0.15, y=0.12)
        place.grid(alpha=0.25)
    axes[0][-1].plot([], [], "o", color=BLUE, label="mean ± standard deviation of several seeds")
    axes[0][-1].plot([], [], "D", color=GREY, label="one seed")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.draw_without_rendering()
    for place, found in zip(axes[0], points.values(), strict=True):
        marks = [place.transData.transform((ratio, fmean(gains))) for gains, ratio in found.values()]
        taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in marks]
        for name, (gains, ratio) in found.items():
            label(place, name, (ratio, fmean(gains)), BLUE if name in MATCHED else GREY, taken)
    figure.savefig(path, dpi=110)
