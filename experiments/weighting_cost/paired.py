"""Timing variants in turns, and the rows of the table that come of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

TIMES = Mapping[str, Sequence[float]]
"""By variant the seconds of a step in each repeat."""


class Variant(Protocol):
    """Something to be timed."""

    cycle: int
    cpu_time: bool

    def run(self, steps: int) -> dict[str, float]:
        """Take steps; seconds of one, "" for the whole, or by the names of its parts."""


def interleave(variants: Mapping[str, Variant], repeats: int, seconds: float, cpu_time: bool) -> dict[str, list[float]]:
    """Each repeat runs every variant once, in an order that moves on from repeat to repeat.

    Args:
        variants: by name; parts of a variant are named ``<variant>/<part>``.
        repeats: how often.
        seconds: what a run should last at least.
        cpu_time: count the seconds in which processes were computing.

    Returns:
        Seconds of a step by name, one for each repeat.
    """
    steps, times = {}, {}
    for name, variant in variants.items():
        variant.cpu_time = cpu_time
        variant.run(2 * variant.cycle)  # warms up
        each = sum(variant.run(variant.cycle).values())
        steps[name] = variant.cycle * max(1, round(seconds / (each * variant.cycle)))
    order = list(variants)
    for repeat in range(repeats):
        turn = repeat % len(order)
        for name in order[turn:] + order[:turn]:
            for part, value in variants[name].run(steps[name]).items():
                times.setdefault(f"{name}/{part}" if part else name, []).append(value)
    return times


@dataclass
class Row:
    """A line of the table.

    Attributes:
        section: its heading.
        what: was measured.
        target: in words.
        values: of each repeat; or one.
        limit: to be met; None where there is nothing to meet.
        least: whether the limit is the least and not the most.
        note: on the side.
        unit: of the values.
    """

    section: str
    what: str
    target: str
    values: list[float]
    limit: float | None = None
    least: bool = False
    note: str = ""
    unit: str = "×"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        if self.limit is None or not self.values:
            return None
        return self.median >= self.limit if self.least else self.median <= self.limit

    def cell(self) -> str:
        """The median, the quartiles, and whether that is what was asked for."""
        if not self.values:
            return self.note
        ordered = sorted(self.values)
        low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
        spread = f" ({low:.2f} … {high:.2f})" if len(ordered) > 1 else ""
        verdict = {None: "", True: "**met** ", False: "**missed** "}[self.met]
        limit = "" if self.limit is None else f", limit {self.limit:.2f}"
        return f"{verdict}{self.median:.2f}{self.unit}{spread}{limit}{'; ' if self.note else ''}{self.note}"

    def stored(self) -> dict[str, Any]:
        return asdict(self)


def ratios(times: TIMES, first: str, second: str) -> list[float]:
    """Of two variants, repeat by repeat."""
    return [a / b for a, b in zip(times[first], times[second], strict=True)]


def milliseconds(times: TIMES, *names: str) -> str:
    return ", ".join(f"{name} {1000 * statistics.median(times[name]):.2f} ms" for name in names)
