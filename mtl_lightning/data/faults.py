"""All that is wrong with the rows of a manifest, collected so that one run of the check tells everything."""

from collections.abc import Callable, Sequence

import numpy as np

from mtl_lightning.data.table import Places

SHOWN = 20
"""Rows that a message lists."""


class Faults:
    """The rows with a fault, and the first few faults in words.

    Args:
        places: where the rows came from.
        rows: how many there are.
        every: keep all faults in words, not the first few alone.
    """

    def __init__(self, places: Places, rows: int, every: bool = False) -> None:
        self.places = places
        self.every = every
        self.bad = np.zeros(rows, dtype=bool)
        self._lines: list[tuple[int, str]] = []

    def add(self, row: int, problem: str) -> None:
        """Note one fault."""
        self.bad[row] = True
        self._lines.append((row, problem))
        if len(self._lines) > 100 * SHOWN and not self.every:
            self._lines = sorted(self._lines)[: 10 * SHOWN]

    def add_all(self, rows: Sequence[int] | np.ndarray, problem: Callable[[int], str]) -> None:
        """Note the same kind of fault for many rows; ``problem`` words it for a row."""
        self.bad[rows] = True
        self._lines += [(int(row), problem(int(row))) for row in rows[: None if self.every else 10 * SHOWN]]

    def by_row(self) -> dict[int, list[str]]:
        """The faults in words, by row."""
        found: dict[int, list[str]] = {}
        for row, problem in self._lines:
            found.setdefault(row, []).append(problem)
        return found

    def report(self, among: np.ndarray | None = None, shown: int | None = SHOWN) -> str:
        """The number of rows with a fault and the first of them, a line each.

        Args:
            among: bool [N], the rows to report on; None means all.
            shown: lines at most; None means all that were noted.
        """
        chosen = self.bad if among is None else self.bad & among
        lines = [(row, problem) for row, problem in sorted(self._lines) if chosen[row]][:shown]
        count, listed = int(chosen.sum()), len({row for row, _ in lines})
        rest = [f"  … and {count - listed} more rows"] if count > listed else []
        listing = [f"  {self.places.where(row)}: {problem}" for row, problem in lines]
        return "\n".join([f"{count} bad row{'s' * (count != 1)}:", *listing, *rest])
