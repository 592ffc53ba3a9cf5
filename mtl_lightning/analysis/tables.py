"""The table at the end: every task and metric, the trivial predictor beside the model."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from mtl_lightning.metrics.evaluation import TaskResult, score

LISTED = 12
"""Thresholds of a task that have a row each; of more the range is shown, and all of them are in ``summary.json``."""
HEADER = ("task", "metric", "model", "trivial", "labelled")
Summary = dict[str, Any]
"""One split of ``summary.json``."""


def summarize(results: Mapping[str, TaskResult]) -> Summary:
    """The results as plain values."""
    return {
        "score": score(results),
        "tasks": {
            name: {
                "metrics": result.values,
                "trivial": result.trivial,
                "skill": result.skill,
                "labelled_elements": result.count,
                "labelled_rows": result.rows,
                "auxiliary": result.auxiliary,
                "thresholds": result.thresholds,
                "measures": {
                    key: {"higher_is_better": measure.higher_is_better, "best": measure.best, "unit": measure.unit}
                    for key, measure in result.measures.items()
                },
            }
            for name, result in results.items()
        },
    }


def rows(summary: Summary) -> list[tuple[str, str, str, str, str]]:
    """One row a task and metric, then its loss; the arrow says which way is better, or to which value."""
    table = []
    for name, task in summary["tasks"].items():
        label = f"{name} (auxiliary)" if task["auxiliary"] else name
        for key, measure in task["measures"].items():
            if key not in task["metrics"]:
                continue
            unit = f" {measure['unit']}" if measure["unit"] else ""
            trivial = f"{task['trivial'][key]:.3f}{unit}" if key in task["trivial"] else "-"
            arrow = {True: "↑", False: "↓", None: f"→ {measure['best']:g}"}[measure["higher_is_better"]]
            count = f"{task['labelled_elements']}" if label else ""
            table.append((label, f"{key} {arrow}", f"{task['metrics'][key]:.3f}{unit}", trivial, count))
            label = ""
        table.append((label, "loss ↓", f"{task['metrics']['loss']:.3f}", "", ""))
        table += [("", *row, "", "") for row in _thresholds(task["thresholds"])]
    return table


def _thresholds(thresholds: Mapping[str, float]) -> list[tuple[str, str]]:
    if len(thresholds) <= LISTED:
        return [(f"threshold of {name}", f"{value:.3f}") for name, value in thresholds.items()]
    values = thresholds.values()
    return [(f"{len(values)} thresholds", f"{min(values):.3f} to {max(values):.3f}")]


def caption(summary: Summary) -> str:
    """The score in words."""
    if summary["score"] is None:
        return "no main task has a label here: no score"
    return f"score {summary['score']:.3f}: mean skill over the trivial predictor, 0 to 1"


def rich_table(title: str, summary: Summary) -> Table:
    """For the terminal."""
    table = Table(title=title)
    for column in HEADER:
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for row in rows(summary):
        table.add_row(*row, style="" if row[0] else "dim")
    return table


def markdown_table(summary: Summary) -> str:
    """For ``summary.md``."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---:|---:|---:|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows(summary)]
    return "\n".join([*lines, "", caption(summary) + "."])
