"""Rows that are texts, and texts to predict."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mtl_lightning.data.dataset import Examined, LabelledDataset
from mtl_lightning.data.labels import Labels
from mtl_lightning.data.pictures import TABLES, OnError, Unreadable
from mtl_lightning.data.table import read_table
from mtl_lightning.data.text.prepare import PreparedText, TextPreparation
from mtl_lightning.data.text.tokens import UNKNOWN_ID, Tokenizer
from mtl_lightning.errors import DataError, MTLError
from mtl_lightning.tasks.base import Task

SHOWN = 10


class RowNames(Sequence[str]):
    """Names of rows that are made when they are asked for: a million strings would be copied into every worker.

    Args:
        name: of a row.
        rows: which.
    """

    def __init__(self, name: Callable[[int], str], rows: np.ndarray) -> None:
        self.name, self.rows = name, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        return [self.name(int(one)) for one in self.rows[row]] if isinstance(row, slice) else self.name(int(self.rows[row]))


class TextDataset(LabelledDataset):
    """Some of many texts.

    Args:
        name: of the split.
        rows: which of them.
        ids: names of all.
        texts: all of them.
        labels: per task those of all.
        where: what messages call a row of all; None takes the split and the name.
        noted: what is known to be wrong with rows of all, for ``check``.
    """

    def __init__(
        self,
        name: str,
        rows: np.ndarray,
        ids: Sequence[str],
        texts: Sequence[str],
        labels: Mapping[str, Labels],
        where: Callable[[int], str] | None = None,
        noted: Mapping[int, list[str]] | None = None,
    ) -> None:
        self.name, self.rows = name, rows
        self.ids = RowNames(ids.__getitem__, rows)
        self.labels, self.noted = dict(labels), noted or {}
        self._all, self._where = texts, where

    @property
    def texts(self) -> Iterator[str]:
        """In order."""
        return (self._all[row] for row in self.rows.tolist())

    def labelled(self, task: str) -> np.ndarray:
        """Bool [N]: which rows have a label of ``task``."""
        chosen: np.ndarray = self.labels[task].labelled[self.rows]
        return chosen

    def targets(self, task: str, rows: Sequence[int]) -> Iterator[Tensor]:
        """The targets of some labelled rows."""
        return (self.labels[task].stored(int(self.rows[row]), None) for row in rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self.rows[index])
        sample: dict[str, Any] = {"id": self.ids[index], "text": self._all[row]}
        return sample | {task: labels.stored(row, None) for task, labels in self.labels.items() if labels.labelled[row]}

    def where(self, index: int) -> str:
        """What messages call a row."""
        return super().where(index) if self._where is None else self._where(int(self.rows[index]))

    def examine(self, index: int, tasks: Mapping[str, Task]) -> Examined:
        """Check a row's labels; its text was checked when it was read."""
        row, found = int(self.rows[index]), Examined()
        found.problems += self.noted.get(row, [])
        for task, labels in self.labels.items():
            if labels.labelled[row]:
                found.targets[task] = labels.stored(row, None)
                try:
                    tasks[task].check(found.targets[task], self.ids[index])
                except DataError as error:
                    found.problems.append(str(error))
        return found


class Tokenise:
    """From a stored row to what the collate takes: ``text`` becomes ids, and what it says is kept as ``words``.

    Args:
        tokenizer: of the run.
        dropout: share of the words that become unknown.
    """

    def __init__(self, tokenizer: Tokenizer, dropout: float = 0.0) -> None:
        self.tokenizer, self.dropout = tokenizer, dropout

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The same row, tokenised."""
        ids = self.tokenizer.ids(sample["text"])
        if self.dropout:
            ids = ids.masked_fill(torch.rand(len(ids)) < self.dropout, UNKNOWN_ID)
        return sample | {"text": ids, "words": sample["text"]}


class GivenTexts(NamedTuple):
    """Texts to predict.

    Attributes:
        names: what results call them.
        texts: as given.
        note: what was left out, in a line; empty if nothing was.
    """

    names: list[str]
    texts: list[str]
    note: str = ""


def find_texts(inputs: Path, column: str, on_error: OnError) -> GivenTexts:
    """The texts that ``--inputs`` means.

    Args:
        inputs: a CSV or Parquet file, or any other file, of which each line that is not blank is a text (UTF-8).
        column: of the table.
        on_error: whether empty cells are left out (``skip``).

    Raises:
        DataError: there is no such file, or no text in it, or a cell is empty.
        ConfigError: the table has no such column.
    """
    if not inputs.is_file():
        what = "is a folder" if inputs.is_dir() else "is no file"
        raise DataError(f"--inputs {inputs} {what}; give a file with a text on each line, or a CSV with a column of texts")
    if inputs.suffix.lower() in TABLES:
        table = read_table(inputs, inputs.name)
        table.need([column], "--column")
        names, texts = [table.places.where(row) for row in range(len(table))], list(table.texts(column))
    else:
        try:
            lines = inputs.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"--inputs {inputs} is not UTF-8 ({error}); save it as a text in UTF-8, or as a CSV") from error
        names = [f"{inputs.name}, line {number}" for number, line in enumerate(lines, start=1) if line.strip()]
        texts = [line.strip() for line in lines if line.strip()]
    empty = [name for name, text in zip(names, texts, strict=True) if not text]
    if not texts or len(empty) == len(texts):
        raise DataError(f"--inputs {inputs}: there is no text in it; give a text on each line, or a CSV with a column of texts")
    if empty and on_error == "raise":
        some = ", ".join(empty[:SHOWN]) + (f", … ({len(empty) - SHOWN} more)" if len(empty) > SHOWN else "")
        raise DataError(f"--inputs: there is no text in column '{column}' of {some}; leave such rows out with --on_error skip")
    return GivenTexts(names, texts)


class TextsToPredict(Dataset[PreparedText | Unreadable | MTLError]):
    """Texts of :func:`find_texts`, prepared.

    Args:
        given: which.
        preparation: of the run.
    """

    def __init__(self, given: GivenTexts, preparation: TextPreparation) -> None:
        self.given, self.preparation = given, preparation
        self.names: Sequence[str] = given.names

    def __len__(self) -> int:
        return len(self.given.names)

    def __getitem__(self, index: int) -> PreparedText | Unreadable | MTLError:
        name, text = self.given.names[index], self.given.texts[index]
        return self.preparation.prepare(text, name) if text else Unreadable(name, "there is no text")
