"""The pictures of a manifest's rows: one each, or several of which some may be missing."""

from collections.abc import Mapping
from functools import cached_property
from itertools import compress

import numpy as np

from mtl_lightning.data.table import Texts


class RowPictures:
    """Paths of pictures, by input and row.

    Args:
        texts: input → [N] paths, empty where a row lacks it.
        names: [N] what rows are called: the path of the first picture that they have.
        reads: task → input.
    """

    def __init__(self, texts: Mapping[str, Texts], names: Texts, reads: Mapping[str, str]) -> None:
        self.texts, self.names, self.reads = dict(texts), names, dict(reads)

    def some(self, rows: np.ndarray) -> "RowPictures":
        """Those of some rows."""
        names = self._some(self.names, rows)
        if len(self.texts) == 1:
            return RowPictures(dict.fromkeys(self.texts, names), names, self.reads)
        texts = {name: self._some(paths, rows) for name, paths in self.texts.items()}
        return RowPictures(texts, names, self.reads)

    @staticmethod
    def _some(paths: Texts, rows: np.ndarray) -> Texts:
        # Going through all at once is faster than asking for many.
        kept = np.zeros(len(paths), dtype=bool)
        kept[rows] = True
        if len(rows) and bool((np.diff(rows) > 0).all()):
            return Texts(compress(paths, kept.tolist()))
        return Texts(paths[row] for row in rows.tolist())

    def read(self, task: str) -> str:
        """The input that a task reads."""
        return self.reads[task]

    def of(self, task: str) -> Texts:
        """The pictures that a task reads."""
        return self.texts[self.reads[task]]

    def given(self, row: int) -> list[str]:
        """The inputs that a row has."""
        return [name for name, paths in self.texts.items() if paths[row]]

    @property
    def files(self) -> list[str]:
        """The paths of all pictures, input after input."""
        return [path for paths in self.texts.values() for path in paths if path]

    def place(self, name: str, row: int) -> int:
        """Where in :attr:`files` a row's picture is."""
        return int(self._places[name][row])

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        counts = np.cumsum(np.concatenate([paths.filled for paths in self.texts.values()])) - 1
        return dict(zip(self.texts, np.split(counts, len(self.texts)), strict=True))
