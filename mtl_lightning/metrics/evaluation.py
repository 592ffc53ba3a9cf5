"""Everything measured on one split: every task's loss and metrics, and the trivial predictor's beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mtl_lightning.batch import Batch
from mtl_lightning.tasks.base import MaskedLoss, Measure, Task


class LossMeter(Metric):
    """The tasks' losses over many batches: totals and denominators are summed apart, so that every labelled element counts once.

    Args:
        tasks: the run's tasks, in order.
    """

    full_state_update = False
    sums: Tensor
    coefficients: Tensor
    rows: Tensor

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.owner = _owners(tasks)
        self.add_state("sums", torch.zeros(2, len(self.owner), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("coefficients", torch.zeros(len(self.owner), dtype=torch.float64), dist_reduce_fx="max")
        self.add_state("rows", torch.zeros(len(tasks), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, terms: "StackedTerms", rows: Tensor) -> None:
        """Add a batch and its labelled rows [T]."""
        self.sums.add_(torch.stack([terms.totals, terms.denominators]))
        self.coefficients.copy_(torch.tensor(terms.coefficients))
        self.rows.add_(rows)

    def compute(self) -> Tensor:
        """The mean losses and the labelled rows [2, T], rows 0 for a task without one labelled element."""
        # In one tensor: of two, torchmetrics would make scalars where there is one task.
        return torch.stack(_means(self.owner, self.sums, self.coefficients, self.rows))


class EpochLosses(nn.Module):
    """The same of an epoch's training steps, from sums that are the same on every rank.

    It is part of the checkpoint, so that an epoch's means survive a resume in its middle, and no metric: what torchmetrics does
    around an update costs more than the update.

    Args:
        tasks: the run's tasks, in order.
    """

    sums: Tensor
    coefficients: Tensor
    rows: Tensor

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.owner = _owners(tasks)
        self.register_buffer("sums", torch.zeros(2, len(self.owner), dtype=torch.float64))
        self.register_buffer("coefficients", torch.zeros(len(self.owner), dtype=torch.float64))
        self.register_buffer("rows", torch.zeros(len(tasks), dtype=torch.float64))

    def add(self, terms: "StackedTerms", rows: Tensor) -> None:
        """Add a step and its labelled rows [T]; what is no finite number was left out of the step."""
        step = torch.stack([terms.totals, terms.denominators])
        self.sums.add_(torch.where(terms.totals.isfinite(), step, 0.0))
        self.coefficients.copy_(torch.tensor(terms.coefficients))
        self.rows.add_(rows)

    def compute(self) -> tuple[Tensor, Tensor]:
        """The mean losses [T] and the labelled rows [T], 0 for a task without one labelled element."""
        return _means(self.owner, self.sums, self.coefficients, self.rows)

    def reset(self) -> None:
        """Start an epoch."""
        for buffer in self.buffers():
            buffer.zero_()


def _owners(tasks: Mapping[str, Task]) -> list[int]:
    """Each loss term's task, by position."""
    return [position for position, task in enumerate(tasks.values()) for _ in task.terms]


def _means(owner: list[int], sums: Tensor, coefficients: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    totals, denominators = sums
    terms = torch.where(denominators > 0, totals / denominators.clamp_min(1e-300), 0.0) * coefficients
    place = torch.tensor(owner, device=sums.device)
    losses = sums.new_zeros(len(rows)).index_add_(0, place, terms)
    elements = sums.new_zeros(len(rows)).index_add_(0, place, denominators)
    return losses, torch.where(elements > 0, rows, 0)


class StackedTerms(NamedTuple):
    """All loss terms of all tasks, in the order of the tasks.

    Attributes:
        totals: [K] with gradient.
        denominators: [K].
        coefficients: K numbers.
    """

    totals: Tensor
    denominators: Tensor
    coefficients: list[float]


def stack_terms(losses: Mapping[str, MaskedLoss]) -> StackedTerms:
    """The terms in one tensor, for logs and reductions; backward goes through the separate scalars."""
    terms = [term for task in losses.values() for term in task.values()]
    totals = torch.stack([term.total.detach() for term in terms])
    denominators = torch.stack([term.denominator.to(totals) for term in terms])
    return StackedTerms(totals, denominators, [term.coefficient for term in terms])


@dataclass
class TaskResult:
    """One task on one split.

    Attributes:
        values: metrics and ``loss`` of the model.
        trivial: the same metrics of the best constant guess.
        count: labelled elements.
        rows: labelled rows.
        skill: of the task's first metric: 0 is the trivial predictor (or worse), 1 is perfect.
        measures: direction and unit of each metric, the first one decides the skill.
        auxiliary: left out of the score.
        tensors: results that are no single number.
        thresholds: probabilities at which the task decides, chosen on the validation split.
    """

    values: dict[str, float]
    trivial: dict[str, float]
    count: int
    rows: int
    skill: float
    measures: dict[str, Measure]
    auxiliary: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)


def skill(measure: Measure, value: float, trivial: float) -> float:
    """How far a value is on the way from the trivial predictor to perfect, clipped at 0.

    Where the trivial predictor is perfect already there is nothing to gain, and the skill is 0.
    """
    span = measure.best - trivial
    if not abs(span) > 1e-12:
        return 0.0
    return max(0.0, (value - trivial) / span)


def score(results: Mapping[str, TaskResult]) -> float | None:
    """The mean skill over the main tasks that have a label; None if there is none."""
    skills = [result.skill for result in results.values() if not result.auxiliary]
    return sum(skills) / len(skills) if skills else None


class Evaluation(nn.Module):
    """Losses and metrics of all tasks on a split, exact over batches and ranks. Its memory does not grow with the split.

    Args:
        tasks: the run's tasks, in order.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        # In a list, so that the tasks are no submodules here as well.
        self._tasks = [dict(tasks)]
        self.metrics = nn.ModuleDict({name: task.metrics() for name, task in tasks.items()})
        self.baselines = nn.ModuleDict({name: task.metrics() for name, task in tasks.items()})
        self.losses = LossMeter(tasks)

    def update(self, predictions: Mapping[str, Tensor], losses: Mapping[str, MaskedLoss], batch: Batch) -> None:
        """Add a batch."""
        tasks = self._tasks[0]
        self.losses.update(stack_terms(losses), torch.stack([batch.labelled[name].sum() for name in tasks]))
        for name, task in tasks.items():
            target, labelled = batch.targets[name], batch.labelled[name]
            task.update(self.metrics[name], predictions[name], target, labelled)  # type: ignore[arg-type]
            task.update_trivial(self.baselines[name], target, labelled)  # type: ignore[arg-type]

    def compute(self, tune: bool = False) -> dict[str, TaskResult]:
        """The results of the tasks that had a label; a task without one is left out.

        Args:
            tune: let the tasks choose on this split what they choose on the validation split.
        """
        results = {}
        losses, rows = self.losses.compute()
        for position, (name, task) in enumerate(self._tasks[0].items()):
            if not rows[position]:
                continue
            computed = self.metrics[name].compute()  # type: ignore[operator]
            values, tensors = _split(task.tune(computed) if tune else computed)
            trivial, _ = _split(self.baselines[name].compute())  # type: ignore[operator]
            first = next(iter(task.measures))
            results[name] = TaskResult(
                {"loss": float(losses[position])} | values,
                trivial,
                int(computed["count"]),
                int(rows[position]),
                skill(task.measures[first], values[first], trivial[first]),
                dict(task.measures),
                task.auxiliary,
                tensors,
                task.thresholds(),
            )
        return results

    def reset(self) -> None:
        """Start anew."""
        for metrics in (*self.metrics.values(), *self.baselines.values(), self.losses):
            metrics.reset()  # type: ignore[operator]


def _split(computed: Mapping[str, Tensor]) -> tuple[dict[str, float], dict[str, Tensor]]:
    numbers = {key: float(value) for key, value in computed.items() if value.ndim == 0 and key != "count"}
    return numbers, {key: value.detach().cpu() for key, value in computed.items() if value.ndim}
