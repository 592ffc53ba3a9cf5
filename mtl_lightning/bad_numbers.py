"""Numbers that are not finite: what is done about them, how they are counted and told, and when they end a run. Pure torch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from mtl_lightning.checks import at_least
from mtl_lightning.errors import TrainingError

PATIENCE = 30
"""Steps in which a loss scaler may look for its scale, before an overflow is no matter of the scale any more."""
SHOWN = 4
"""Samples that a message names."""
HINTS = {
    "image": "look at the file, and at data.init_args.train_transforms",
    "target": "look at this label",
    "loss": "look at the labels of these samples, lower the learning rate, or clip gradients with trainer.gradient_clip_val",
    "gradient": "lower the learning rate, clip gradients with trainer.gradient_clip_val, or look at these samples",
}


@dataclass
class BadNumbers:
    """What to do about a NaN or an infinite number in an image, a target, a loss or a gradient.

    Attributes:
        policy: ``skip`` leaves out as little as possible: the image, the label, the task in this step, or the step. ``raise``
            leaves it out as well, and ends the run behind the step, with all saved.
        in_a_row: so many steps with a bad number, one after the other, end the run under ``skip``, too.
    """

    policy: Literal["skip", "raise"] = "skip"
    in_a_row: int = 3

    def __post_init__(self) -> None:
        """Check the number."""
        at_least("model.bad_numbers.in_a_row", self.in_a_row, 1)


class Fault(NamedTuple):
    """Something that is not finite.

    Attributes:
        what: an ``image`` (any input), a ``target``, a ``loss`` or a ``gradient``.
        name: of the input or the task.
        ids: of the sample, or of those that may be to blame.
        lost: what was left out, in words.
    """

    what: Literal["image", "target", "loss", "gradient"]
    name: str
    ids: tuple[str, ...] = ()
    lost: str = ""

    @property
    def key(self) -> str:
        """Under what it is counted."""
        return self.what if self.what == "image" else f"{self.what}/{self.name}"

    def __str__(self) -> str:
        some = ", ".join(self.ids[:SHOWN]) + (", …" if len(self.ids) > SHOWN else "")
        if self.what == "image":
            return f"sample {some}: input '{self.name}' holds NaN or infinite numbers, {self.lost}"
        if self.what == "target":
            return f"sample {some}: the label of task '{self.name}' holds NaN or infinite numbers, {self.lost}"
        return f"the {self.what} of task '{self.name}' is not a finite number{f' (samples {some})' if some else ''}, {self.lost}"


def merged(faults: Iterable[Fault]) -> list[Fault]:
    """What several processes found: each sample, but each task's loss and gradient once, with the samples of all."""
    found: dict[tuple[str, ...], Fault] = {}
    for fault in faults:
        key = (fault.key, *(fault.ids if fault.what in ("image", "target") else ()), fault.name)
        if key in found:
            fault = fault._replace(ids=tuple(dict.fromkeys([*found[key].ids, *fault.ids])))
        found[key] = fault
    return list(found.values())


class BadNumberMeter(nn.Module):
    """Counts and tells what was found in training, and says when it ends the run. Its state is part of checkpoints.

    Args:
        options: what to do.
        report: takes a sentence for the user.
    """

    def __init__(self, options: BadNumbers, report: Callable[[str], None]) -> None:
        super().__init__()
        self.options, self._report = options, report
        self.counts: dict[str, int] = {}
        self.in_a_row, self.searching = 0, 0
        self._step: list[Fault] = []

    def add(self, faults: Sequence[Fault], where: str, steps: bool = False) -> TrainingError | None:
        """Count what was found, and tell the 1st, 2nd, 4th, 8th… of each kind.

        Args:
            faults: the same on all processes.
            where: step and epoch, in words.
            steps: whether the optimizer's step is over with this.

        Returns:
            The error that is to end the run, if it must end.
        """
        for fault in faults:
            count = self.counts[fault.key] = self.counts.get(fault.key, 0) + 1
            if count & (count - 1) == 0:
                self._report(f"Bad numbers in {where}: {fault} ({count} time{'s' * (count > 1)} so far); {HINTS[fault.what]}")
        self._step += faults
        why = "model.bad_numbers.policy is raise" if faults and self.options.policy == "raise" else ""
        last = list(self._step)
        if steps:
            self.in_a_row, self._step = self.in_a_row + 1 if last else 0, []
            if self.in_a_row >= self.options.in_a_row:
                why = why or f"in {self.in_a_row} steps one after the other, see model.bad_numbers.in_a_row"
        if not why:
            return None
        # A run that goes on from here starts to count anew.
        self.in_a_row = 0
        listing = "; ".join(map(str, last[:SHOWN])) + (f"; … and {len(last) - SHOWN} more" if len(last) > SHOWN else "")
        hint = HINTS[last[0].what]
        return TrainingError(
            f"bad numbers in {where} ({why}): {listing}. {hint[0].upper()}{hint[1:]}; --ckpt_path last goes on behind this step"
        )

    def search(self, skipped: bool) -> bool:
        """Whether a loss scaler that skips steps will find no scale any more.

        Args:
            skipped: whether it skipped this step.
        """
        self.searching = self.searching + 1 if skipped else 0
        return self.searching > PATIENCE

    def record(self) -> dict[str, float]:
        """For the log: what was found so far."""
        return counted(self.counts)

    def get_extra_state(self) -> dict[str, Any]:
        """Part of ``state_dict``: plain numbers, because the device need not know them."""
        return {"counts": dict(self.counts), "in_a_row": self.in_a_row, "searching": self.searching}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of :meth:`get_extra_state`."""
        self.counts, self.in_a_row, self.searching = dict(state["counts"]), state["in_a_row"], state["searching"]


class EvaluationFaults:
    """The samples of an evaluation whose images or labels were left out.

    Args:
        options: what to do.
        report: takes a sentence for the user.
    """

    def __init__(self, options: BadNumbers, report: Callable[[str], None]) -> None:
        self._options, self._report = options, report
        self._found: dict[str, list[Fault]] = {}
        self._told: dict[str, int] = {}

    def add(self, split: str, faults: Sequence[Fault]) -> None:
        """Note those of a batch."""
        if faults:
            self._found.setdefault(split, []).extend(faults)

    def count(self, split: str) -> int:
        """How many there are on this process."""
        return len(self._found.get(split, ()))

    def take(self, split: str) -> list[Fault]:
        """Those of this process; the next evaluation starts anew."""
        return self._found.pop(split, [])

    def finish(self, split: str, faults: Sequence[Fault]) -> tuple[dict[str, float], TrainingError | None]:
        """Tell them, but not again what was told already.

        Args:
            split: of which.
            faults: of all processes.

        Returns:
            For the log, how many; and the error that is to end the run, if it must end.
        """
        counts: dict[str, int] = {}
        for fault in faults:
            counts[fault.key] = counts.get(fault.key, 0) + 1
        if not faults:
            return {}, None
        more = f"; … and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        text = f"{split} split: {'; '.join(map(str, faults[:SHOWN]))}{more}"
        if self._options.policy == "raise":
            return counted(counts, f"{split}/"), TrainingError(f"bad numbers (model.bad_numbers.policy is raise), {text}")
        if self._told.get(split) != len(faults):
            self._told[split] = len(faults)
            self._report(f"Bad numbers, {text}")
        return counted(counts, f"{split}/"), None


def counted(counts: dict[str, int], before: str = "") -> dict[str, float]:
    """Counts under the names of the log."""
    return {f"{before}bad/{key}": float(count) for key, count in counts.items()}
