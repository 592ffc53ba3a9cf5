"""From the tasks' loss terms to one scalar whose gradient, averaged over processes, is that of the global batch. Pure torch."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
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
        owner: the position of each term's task.
        factors: what each term's total on this process was multiplied by, in the order of the terms.
        blocks: by task, what the rows of each block of the batch add to the loss; empty where nobody wants it.
        numbers: the values as plain numbers, to be read without a wait for the device.
        places: the present positions, likewise.
        faults: images and labels that were left out of the batch, on all processes.
    """

    scalars: dict[str, Tensor]
    values: Tensor
    present: Tensor
    terms: StackedTerms
    rows: Tensor
    owner: list[int]
    factors: list[float]
    blocks: dict[str, list[Tensor]]
    numbers: list[float]
    places: list[int]
    faults: int = 0

    def not_finite(self) -> list[str]:
        """The tasks whose loss is not a finite number."""
        return [name for name, finite in zip(self.scalars, map(math.isfinite, self.numbers), strict=True) if not finite]

    def without(self, tasks: Collection[str], instead: Tensor) -> "Losses":
        """The losses as if these tasks had no label in the batch; their values stay as they are.

        Args:
            tasks: which.
            instead: their scalars, an exact 0: multiplied by 0, a loss that is no number would be none still.
        """
        names = list(self.scalars)
        left = [place for place in self.places if names[place] not in tasks]
        gone = torch.tensor([name in tasks for name in names], device=self.values.device)
        terms = gone[torch.tensor(self.owner, device=gone.device)]
        totals, denominators = (part.masked_fill(terms, 0.0) for part in self.terms[:2])
        return self._replace(
            scalars={name: instead if name in tasks else scalar for name, scalar in self.scalars.items()},
            present=torch.tensor(left, dtype=torch.long, device=self.values.device),
            places=left,
            terms=StackedTerms(totals, denominators, self.terms.coefficients),
            rows=self.rows.masked_fill(gone, 0.0),
        )


def normalize(
    masked: Mapping[str, MaskedLoss],
    labelled: Mapping[str, Tensor],
    importance: Mapping[str, float],
    world: int,
    reduce: Reduce,
    faults: int = 0,
) -> Losses:
    """Divide every term by its denominator over the global batch.

    Args:
        masked: each task's loss terms on this process.
        labelled: per task a bool [B].
        importance: each task's fixed weight.
        world: number of processes, over which gradients will be averaged.
        reduce: sums over them; not called if there is one.
        faults: images and labels that were left out of the batch on this process.
    """
    terms = stack_terms(masked)
    rows = torch.stack([labelled[name].sum() for name in masked]).to(terms.totals)
    if world > 1:
        count = [len(terms.totals), len(terms.denominators), len(rows), 1]
        added = reduce(torch.cat([terms.totals, terms.denominators, rows, rows.new_tensor([float(faults)])]))
        totals, denominators, rows, everywhere = torch.split(added, count)
        terms = StackedTerms(totals, denominators, terms.coefficients)
        numbers = torch.cat([totals, denominators, everywhere]).tolist()
        faults = round(numbers.pop())
    else:
        numbers = torch.cat([terms.totals, terms.denominators]).tolist()
    # One transfer from the device, and plain numbers from here on.
    sums, divisors = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    scalars, values, present, factors, owner, index = {}, [], [], [], [], 0
    for position, (name, task) in enumerate(masked.items()):
        parts, value, seen = [], 0.0, False
        for term in task.values():
            factor = 0.0
            if divisors[index] > 0:
                factor = importance[name] * term.coefficient / divisors[index]
                value, seen = value + sums[index] * factor, True
            factors.append(world * factor)
            owner.append(position)
            parts.append(term.total * factors[-1])
            index += 1
        scalars[name] = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
        values.append(value)
        if seen:
            present.append(position)
    device, dtype = terms.totals.device, terms.totals.dtype
    places, held = torch.tensor(present, dtype=torch.long, device=device), torch.tensor(values, dtype=dtype)
    return Losses(scalars, held.to(device), places, terms, rows, owner, factors, {}, held.tolist(), present, faults)


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
    names, present = list(losses.scalars), losses.places
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
