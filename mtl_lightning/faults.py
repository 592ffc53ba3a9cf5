"""Whose fault it is that a loss or a gradient is no finite number. Pure torch."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from mtl_lightning.bad_numbers import Fault
from mtl_lightning.batch import Batch
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.weighting import Weighting


def ids_of(batch: Batch, rows: Tensor) -> tuple[str, ...]:
    """The names of some rows (bool [B])."""
    return tuple(name for name, chosen in zip(batch.ids, rows.tolist(), strict=True) if chosen)


def loss_faults(tasks: Collection[str], predictions: Mapping[str, Tensor], batch: Batch) -> list[Fault]:
    """For each of these tasks, with the samples whose prediction is no number; where there are none, with all labelled ones."""
    found = []
    for name in tasks:
        known = batch.labelled[name]
        wrong = known & ~predictions[name].detach().flatten(1).isfinite().all(1)
        rows = wrong if bool(wrong.any()) else known
        found.append(Fault("loss", name, ids_of(batch, rows), "the task was left out of the step"))
    return found


def gradient_faults(tasks: Sequence[str], batch: Batch, lost: str) -> list[Fault]:
    """For each of these tasks, with its labelled samples.

    Args:
        tasks: names.
        batch: of the step.
        lost: what was left out, in words.
    """
    return [Fault("gradient", name, ids_of(batch, batch.labelled[name]), lost) for name in tasks]


def whose(
    model: MultiTaskModel, weighting: Weighting, present: Sequence[str], finite: Callable[[Sequence[Tensor]], bool]
) -> list[str]:
    """The tasks with gradients in their own parameters that are not finite; all present ones where that does not tell.

    Args:
        model: the network.
        weighting: with parameters of its own, perhaps.
        present: names.
        finite: whether all numbers of some gradients are finite, on all processes.
    """
    names = list(model.heads)
    owners = {parameter: next(iter(users)) for parameter, users in model.owners().items() if len(users) == 1}
    owners |= {parameter: names[task] for parameter, task in weighting.owners().items()}
    bad = {task for parameter, task in owners.items() if parameter.grad is not None and not finite([parameter.grad])}
    return [name for name in present if name in bad] or list(present)
