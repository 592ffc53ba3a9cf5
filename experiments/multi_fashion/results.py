"""From the folders of the runs to a table and a picture."""

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mtl_lightning.analysis.delta import compare, delta_over_metrics, delta_over_tasks

METRIC = "accuracy"
Points = dict[str, dict[str, list[float]]]
"""Accuracies by method, then task."""


def tested(runs: Path, what: str, seeds: Sequence[int]) -> list[tuple[dict[str, Any], float]]:
    """The test split's summary and the median seconds of an epoch after the first, of each seed that was run to its end."""
    found = []
    for folder in (runs / f"{what}-{seed}" for seed in seeds):
        if (folder / "done.json").exists():
            with (folder / "metrics.csv").open(newline="") as file:
                seconds = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "seconds"]
            found.append((json.loads((folder / "summary.json").read_text())["test"], median(seconds[1:] or seconds)))
    return found


def accuracy(summary: Mapping[str, Any], task: str) -> float:
    """Of a task."""
    return float(summary["tasks"][task]["metrics"][METRIC])


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    return f"{fmean(values):.{digits}f} ± {stdev(values) if len(values) > 1 else 0:.{digits}f}"


def mean_base(summaries: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
    """One base out of those of several seeds."""
    entry = summaries[0]["tasks"][task]
    return {"tasks": {task: entry | {"metrics": {METRIC: fmean(accuracy(summary, task) for summary in summaries)}}}}


def table(
    runs: Path, methods: Sequence[str], tasks: Sequence[str], seeds: Sequence[int]
) -> tuple[str, Points, dict[str, list[float]]]:
    """The table, the accuracies by method and task, and those of the single-task networks."""
    alone = {task: [summary for summary, _ in tested(runs, task, seeds)] for task in tasks}
    bases = {task: [accuracy(summary, task) for summary in found] for task, found in alone.items() if found}
    base = {task: mean_base(found, task) for task, found in alone.items() if found}
    lines = [
        f"| method | {' | '.join(f'{task}, accuracy % ↑' for task in tasks)} | Δm over metrics, % ↓ | Δm over tasks, % ↑ | "
        "s an epoch | runs |",
        "|---|" + "---:|" * (len(tasks) + 4),
    ]
    if len(bases) == len(tasks):
        cells = [cell([100 * value for value in bases[task]]) for task in tasks]
        times = [f"{fmean(seconds for _, seconds in tested(runs, task, seeds)):.1f}" for task in tasks]
        counts = "+".join(str(len(bases[task])) for task in tasks)
        lines.append(f"| each task alone | {' | '.join(cells)} | 0 | 0 | {' + '.join(times)} | {counts} |")
    points: Points = {}
    for method in methods:
        found = tested(runs, method, seeds)
        if not found:
            continue
        points[method] = {task: [accuracy(summary, task) for summary, _ in found] for task in tasks}
        cells = [cell([100 * value for value in points[method][task]]) for task in tasks]
        if len(base) == len(tasks):
            compared = [compare(summary, base, {task: [METRIC] for task in tasks}) for summary, _ in found]
            cells += [cell([delta(entries) for entries in compared]) for delta in (delta_over_metrics, delta_over_tasks)]
        else:
            cells += ["-", "-"]
        lines.append(f"| {method} | {' | '.join(cells)} | {fmean(seconds for _, seconds in found):.1f} | {len(found)} |")
    return "\n".join(lines) + "\n", points, bases


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other one beats in both, by their first number."""
    kept: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept[::-1]


def scatter(points: Points, bases: Mapping[str, Sequence[float]], tasks: Sequence[str], file: Path) -> None:
    """One task's accuracy against the other's: means with the spread of the seeds, the Pareto front, single-task lines."""
    picture, axis = plt.subplots(figsize=(8, 5.2))
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for (method, values), color, marker in zip(
        points.items(), cycle(colors[::2] + colors[1::2]), cycle("osD^vP*X"), strict=False
    ):
        pairs = [[100 * value for value in values[task]] for task in tasks]
        spread = [stdev(numbers) if len(numbers) > 1 else 0.0 for numbers in pairs]
        x, y = (fmean(numbers) for numbers in pairs)
        axis.errorbar(x, y, xerr=spread[0], yerr=spread[1], color=color, linewidth=0.8, alpha=0.7, zorder=2)
        axis.scatter(x, y, color=color, marker=marker, s=60, edgecolor="black", linewidth=0.5, label=method, zorder=3)
    means = [(100 * fmean(values[tasks[0]]), 100 * fmean(values[tasks[1]])) for values in points.values()]
    if means:
        axis.plot(*zip(*front(means), strict=True), color="black", linewidth=1, label="Pareto front", zorder=1)
    for task, line, style in zip(tasks, (axis.axvline, axis.axhline), ("--", ":"), strict=True):
        if task in bases:
            line(100 * fmean(bases[task]), color="grey", linestyle=style, linewidth=1.2, label=f"{task} alone")
    axis.set(xlabel=f"{tasks[0]}, test accuracy in %", ylabel=f"{tasks[1]}, test accuracy in %")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
    axis.grid(alpha=0.25)
    picture.tight_layout()
    picture.savefig(file, dpi=120)
    plt.close(picture)
