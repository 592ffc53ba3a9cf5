"""From the tasks' loss terms to one scalar whose gradient, averaged over processes, is that of the global batch. Pure torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtl_lightning.metrics.evaluation import StackedTerms, stack_terms
from mtl_lightning.tasks.base import MaskedLoss
from mtl_lightning.weighting import LossWeighting

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes."""


class Losses(NamedTuple):
    """The tasks' losses of a step, each the mean over the labelled elements of the global batch.

    Attributes:
        scalars: by task, with gradient, times the task's importance; their mean over the processes is the loss.
        values: [T] the same over the global batch, without gradient.
        present: int64 [P], the positions of the tasks with a labelled element anywhere in the global batch.
        terms: all loss terms, summed over the processes.
        rows: [T] labelled rows of the global batch.
        factors: what each term's total on this process was multiplied by, in the order of the terms.
        blocks: by task, what the rows of each block of the batch add to the loss; empty where nobody wants it.
    """

    scalars: dict[str, Tensor]
    values: Tensor
    present: Tensor
    terms: StackedTerms
    rows: Tensor
    factors: list[float]
    blocks: dict[str, list[Tensor]]

    def not_finite(self) -> list[str]:
        """The tasks whose loss is not a finite number."""
        return [name for name, finite in zip(self.scalars, self.values.isfinite().tolist(), strict=True) if not finite]


def normalize(
    masked: Mapping[str, MaskedLoss], labelled: Mapping[str, Tensor], importance: Mapping[str, float], world: int, reduce: Reduce
) -> Losses:
    """Divide every term by its denominator over the global batch.

    Args:
        masked: each task's loss terms on this process.
        labelled: per task a bool [B].
        importance: each task's fixed weight.
        world: number of processes, over which gradients will be averaged.
        reduce: sums over them; not called if there is one.
    """
    terms = stack_terms(masked)
    rows = torch.stack([labelled[name].sum() for name in masked]).to(terms.totals)
    if world > 1:
        added = reduce(torch.cat([terms.totals, terms.denominators, rows]))
        totals, counts, rows = torch.split(added, [len(terms.totals), len(terms.denominators), len(rows)])
        terms = StackedTerms(totals, counts, terms.coefficients)
    # One transfer from the device, and plain numbers from here on.
    totals, denominators = torch.stack([terms.totals, terms.denominators]).tolist()
    scalars, values, present, factors, index = {}, [], [], [], 0
    for position, (name, task) in enumerate(masked.items()):
        parts, value, seen = [], 0.0, False
        for term in task.values():
            factor = 0.0
            if denominators[index] > 0:
                factor = importance[name] * term.coefficient / denominators[index]
                value, seen = value + totals[index] * factor, True
            factors.append(world * factor)
            parts.append(term.total * factors[-1])
            index += 1
        scalars[name] = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
        values.append(value)
        if seen:
            present.append(position)
    device, dtype = terms.totals.device, terms.totals.dtype
    places = torch.tensor(present, dtype=torch.long, device=device)
    return Losses(scalars, torch.tensor(values, dtype=dtype, device=device), places, terms, rows, factors, {})


def in_blocks(losses: Losses, masked: Sequence[Mapping[str, MaskedLoss]]) -> Losses:
    """The losses with what each block of rows adds to them; the blocks' sum is the loss.

    Args:
        losses: of the batch.
        masked: for each block the tasks' terms with the rows of that block alone.
    """
    blocks: dict[str, list[Tensor]] = {name: [] for name in losses.scalars}
    for block in masked:
        factors = iter(losses.factors)
        for name, terms in block.items():
            blocks[name].append(torch.stack([term.total * next(factors) for term in terms.values()]).sum())
    return losses._replace(blocks=blocks)


def block_of_rows(rows: int, blocks: int, world: int, rank: int) -> Tensor:
    """Which block each row of a process belongs to: row i of the global batch is in block i modulo ``blocks``.

    Processes take turns through the global batch.
    """
    return (torch.arange(rows) * world + rank) % blocks


def weigh(losses: Losses, weighting: LossWeighting | None) -> tuple[Tensor, list[float]]:
    """The weighted sum of the losses with the method's own penalty, and the weights of the present tasks.

    Absent tasks and the method's parameters stay in the graph with an exact 0: no unused parameter, no hang under DDP.
    """
    names, present = list(losses.scalars), losses.present.tolist()
    chosen = losses.values[losses.present]
    weights = weighting(chosen, losses.present) if present and weighting is not None else torch.ones_like(chosen)
    objective = losses.values.new_zeros(())
    for position in sorted(set(range(len(names))) - set(present)):
        objective = objective + losses.scalars[names[position]]
    for parameter in () if weighting is None else weighting.parameters():
        objective = objective + parameter.sum() * 0
    numbers = weights.tolist()
    for index, position in enumerate(present):
        loss = losses.scalars[names[position]]
        # One operation instead of three where the weight is a plain number: of a small network's step that is felt.
        if weights.requires_grad:
            objective = objective + weights[index] * loss
        else:
            objective = torch.add(objective, loss, alpha=numbers[index])
    if present and weighting is not None and (penalty := weighting.penalty(losses.present)) is not None:
        objective = objective + penalty
    return objective, numbers
