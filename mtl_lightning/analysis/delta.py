"""Delta m: how much better or worse one network for all tasks is than one network a task, in percent. Pure Python.

Two definitions exist, of opposite direction. Both compare each metric M of the network with the base B of a single-task run
(never with an early epoch of the same run), as (M - B) / |B|:

- :func:`delta_over_metrics`, the mean over all metrics of all tasks, **lower is better**: negative numbers beat the base.
  Maninis, Radosavovic, Kokkinos (CVPR 2019) and the tables of CAGrad, Nash-MTL, FAMO, FairGrad.
- :func:`delta_over_tasks`, the mean over each task's metrics, then over tasks, **higher is better**. LibMTL's.

Where every task has as many metrics the two are one number with opposite signs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from mtl_lightning.errors import DataError

LEAST = 1e-6
"""Of a base's size: nearer to 0, the quotient says nothing."""
NOT_COMPARED = ("r2",)
"""Metrics whose zero means "as good as the mean", so that no share of them means anything."""


class Compared(NamedTuple):
    """One metric of a network beside its base.

    Attributes:
        task: whose.
        metric: its name.
        value: of the network.
        base: of the single-task run.
        higher_is_better: the direction.
    """

    task: str
    metric: str
    value: float
    base: float
    higher_is_better: bool

    @property
    def gain(self) -> float:
        """By how much of the base it is better, in percent."""
        change = 100 * (self.value - self.base) / abs(self.base)
        return change if self.higher_is_better else -change


def compare(
    run: Mapping[str, Any], bases: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Sequence[str]] | None = None
) -> list[Compared]:
    """Put metrics beside their bases.

    Args:
        run: one split of a run's ``summary.json``.
        bases: for each task the same split of the run that trained this task alone.
        metrics: which to compare, by task; None takes all main tasks, and of each all metrics that have a direction, but R2.

    Raises:
        DataError: a task or metric that is missing, a metric without direction, a value that is no number, or a base of about 0.
    """
    tasks = run["tasks"]
    if metrics is None:
        metrics = {name: _usual(task) for name, task in tasks.items() if not task["auxiliary"]}
    found = []
    for task, names in metrics.items():
        for metric in names:
            value, higher = _value(tasks, task, metric, "the run")
            base, _ = _value(bases.get(task, {}).get("tasks", {}), task, metric, "the base")
            if abs(base) < LEAST:
                raise DataError(
                    f"the base of {task}/{metric} is {base:g}, and a share of about 0 says nothing; name the metrics to compare "
                    "without it"
                )
            found.append(Compared(task, metric, value, base, higher))
    if not found:
        raise DataError("no metric is to be compared: delta m has no value; name at least one")
    return found


def _usual(task: Mapping[str, Any]) -> list[str]:
    directed = [key for key, measure in task["measures"].items() if measure["higher_is_better"] is not None]
    return [key for key in directed if key in task["metrics"] and key not in NOT_COMPARED]


def _value(tasks: Mapping[str, Any], task: str, metric: str, which: str) -> tuple[float, bool]:
    if task not in tasks:
        raise DataError(f"{which} has no task '{task}', it has {', '.join(tasks) or 'none'}; delta m compares the same tasks")
    metrics, measures = tasks[task]["metrics"], tasks[task]["measures"]
    if metric not in metrics or metric not in measures:
        raise DataError(f"{which} has no metric {task}/{metric}, it has {', '.join(key for key in measures if key in metrics)}")
    higher, value = measures[metric]["higher_is_better"], metrics[metric]
    if higher is None:
        raise DataError(f"{task}/{metric} is neither to be high nor to be low; delta m compares metrics that have a direction")
    if not math.isfinite(value):
        raise DataError(f"{task}/{metric} of {which} is {value}, expected a finite number")
    return float(value), bool(higher)


def delta_over_metrics(compared: Iterable[Compared]) -> float:
    """The mean over all metrics of (-1)^[higher is better] * (M - B) / B, in percent: lower is better.

    >>> delta_over_metrics([Compared("seg", "miou", 0.44, 0.4, True), Compared("depth", "rmse", 0.6, 0.5, False)])
    5.0
    """
    return round_off(-fmean(entry.gain for entry in compared))


def delta_over_tasks(compared: Iterable[Compared]) -> float:
    """The mean over tasks of the mean over the task's metrics of (-1)^[lower is better] * (M - B) / B: higher is better.

    In percent.

    >>> both = [Compared("seg", "miou", 0.44, 0.4, True), Compared("seg", "accuracy", 0.8, 0.8, True)]
    >>> delta_over_tasks([*both, Compared("depth", "rmse", 0.6, 0.5, False)])
    -7.5
    """
    by_task: dict[str, list[float]] = {}
    for entry in compared:
        by_task.setdefault(entry.task, []).append(entry.gain)
    return round_off(fmean(fmean(gains) for gains in by_task.values()))


def round_off(percent: float) -> float:
    """Without the noise of binary fractions, and without a negative zero."""
    return round(percent, 10) + 0.0
