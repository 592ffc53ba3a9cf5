"""Samples before they become a batch: what in them is not finite is taken out and named, before anything could learn from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_lightning.bad_numbers import Fault
from mtl_lightning.batch import TargetSpec

Sample = dict[str, Any]


def bad_target(spec: TargetSpec, value: Any) -> bool:
    """Whether a label is unusable: infinite somewhere, or NaN where no NaN can be.

    NaN in a vector or a map means that this entry or pixel is missing; a vector (or a single number) of which nothing is known
    is no label at all. Classes and masks know no NaN.

    Args:
        spec: of the target.
        value: as in a sample.
    """
    value = torch.as_tensor(value)
    if not value.is_floating_point() or bool(value.sum().isfinite()):
        return False
    if not spec.dtype.is_floating_point:
        return not bool(value.isfinite().all())
    return bool(value.isinf().any()) or (not spec.dense and bool(value.isnan().all()))


def bad_input(value: Any) -> bool:
    """Whether an input holds a number that is not finite."""
    value = torch.as_tensor(value)
    # The sum is several times cheaper than a look at each number, and only of huge ones it is infinite without reason.
    return value.is_floating_point() and not bool(value.sum().isfinite()) and not bool(value.isfinite().all())


def sieve(
    samples: Sequence[Sample], targets: Mapping[str, TargetSpec], inputs: Mapping[str, Sequence[str]], fillers: Sequence[bool]
) -> tuple[list[Sample], list[Fault]]:
    """Take out inputs and labels that are not finite.

    In place of a row of which no input is left stands another one without its labels, or zeros where no row is left: the batch
    keeps its length and the rows their places, by which processes go.

    Args:
        samples: finished.
        targets: of the run's tasks.
        inputs: their names, each with the tasks that read it.
        fillers: which rows only fill up the batch; what is bad in these is not named.

    Returns:
        As many samples, and what was bad.
    """
    rows: list[Sample | None] = []
    faults: list[Fault] = []
    for sample, filler in zip(samples, fillers, strict=True):
        left, found = _sifted(sample, targets, inputs)
        faults += [] if filler else found
        rows.append(left)
    kept = [row for row in rows if row is not None]
    if len(kept) < len(rows):
        others = [_unlabelled(row, inputs) for row in kept] or [_blank(sample, inputs) for sample in samples]
        kept = [others[place % len(others)] if row is None else row for place, row in enumerate(rows)]
    return kept, faults


def _sifted(
    sample: Sample, targets: Mapping[str, TargetSpec], inputs: Mapping[str, Sequence[str]]
) -> tuple[Sample | None, list[Fault]]:
    name, faults = str(sample["id"]), []
    bad = [key for key in inputs if sample.get(key) is not None and bad_input(sample[key])]
    left = {key for key in inputs if sample.get(key) is not None} - set(bad)
    for key in bad:
        faults.append(Fault("image", key, (name,), "it was left out with its labels"))
    if bad and not left:
        return None, faults
    # Of several inputs, the labels of the tasks that read the bad one go with it.
    gone = {*bad, *(task for key in bad for task in inputs[key])}
    for task, spec in targets.items():
        if task not in gone and sample.get(task) is not None and bad_target(spec, sample[task]):
            faults.append(Fault("target", task, (name,), "it counts as missing"))
            gone.add(task)
    return {key: value for key, value in sample.items() if key not in gone} if gone else sample, faults


def _unlabelled(sample: Sample, inputs: Mapping[str, Sequence[str]]) -> Sample:
    return {key: sample[key] for key in ("id", "size", "words", *inputs) if key in sample}


def _blank(sample: Sample, inputs: Mapping[str, Sequence[str]]) -> Sample:
    blank: Sample = {key: sample[key] for key in ("id", "size") if key in sample}
    for key in inputs:
        if sample.get(key) is not None:
            value: Tensor = torch.as_tensor(sample[key])
            blank[key] = torch.zeros_like(value)
    return blank
