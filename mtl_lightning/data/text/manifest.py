"""Texts and half-filled label columns: a CSV or Parquet manifest as a data module."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from mtl_lightning.data.columns import Column, read_labels, resolve_column
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.faults import Faults
from mtl_lightning.data.labels import Labels
from mtl_lightning.data.splits import SPLITS, Split, assign
from mtl_lightning.data.table import Table, join_tables, read_table
from mtl_lightning.data.text.dataset import RowNames, TextDataset
from mtl_lightning.data.text.module import TextDataModule
from mtl_lightning.data.verify import check_values
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.tasks.base import Task


class TextManifestDataModule(TextDataModule):
    """Texts in a CSV or Parquet file, a column (or a few) per label; an empty cell is a missing label.

    What a cell means is decided by the task that reads it: a class name (or index), a number, or 0/1. All cells are checked
    before training. A text may be in one split alone, whatever its labels.

    Args:
        root: the folder that holds the files.
        manifest: the CSV (UTF-8, comma separated, with a header) or ``.parquet`` file; null where ``split.files`` names them.
        text: the column of the texts.
        columns: task → column, list of columns, or a :class:`~mtl_lightning.data.columns.Column`; a task that is not named
            here takes the column of its own name.
        split: see :class:`~mtl_lightning.data.splits.Split`.
        on_error: ``raise`` stops at bad rows; ``skip`` leaves them out and lists some of them.
        **kwargs: of :class:`~mtl_lightning.data.text.module.TextDataModule`.

    Raises:
        ConfigError: settings that contradict each other.
    """

    def __init__(
        self,
        root: str,
        manifest: str | None = None,
        text: str = "text",
        columns: dict[str, str | list[str] | Column] | None = None,
        split: Split | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = os.path.expanduser(root)
        self.split = split if split is not None else Split()
        self.split.check()
        self.manifests = self.split.manifests(manifest)
        self.column, self.columns, self.on_error = text, dict(columns or {}), on_error

    def read(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        """Read and check the manifest; raises :class:`DataError` listing the bad rows, unless they are to be skipped."""
        table, codes, labels, faults = self._checked(tasks, every=False)
        wanted = np.isin(codes, [SPLITS.index(split) for split in splits])
        if faults.bad.any():
            if self.on_error == "raise":
                raise DataError(f"{faults.report()}\nMend the rows, or set data.init_args.on_error to skip to leave them out")
            if (faults.bad & wanted).any():
                rank_zero_info(f"left out {faults.report(wanted)}")
        kept = np.where(faults.bad, -1, codes)
        return self._parts(table, kept, labels, {}, [split for split in splits if (kept == SPLITS.index(split)).any()])

    def examined(self, tasks: Mapping[str, Task]) -> dict[str, LabelledDataset]:
        """All rows, the bad ones too."""
        table, codes, labels, faults = self._checked(tasks, every=True)
        return self._parts(table, codes, labels, faults.by_row(), [name for code, name in enumerate(SPLITS) if code in codes])

    def _parts(
        self, table: Table, codes: np.ndarray, labels: Mapping[str, Labels], noted: Mapping[int, list[str]], splits: Sequence[str]
    ) -> dict[str, LabelledDataset]:
        where, texts = table.places.where, table.texts(self.column)
        ids = RowNames(where, np.arange(len(table)))
        return {
            split: TextDataset(split, np.flatnonzero(codes == SPLITS.index(split)), ids, texts, labels, where, noted)
            for split in splits
        }

    def _checked(self, tasks: Mapping[str, Task], every: bool) -> tuple[Table, np.ndarray, dict[str, Labels], Faults]:
        self.check_names("data.init_args.columns", self.columns)
        tables = [read_table(Path(self.root) / name, name) for name in self.manifests]
        table = join_tables(tables) if len(tables) > 1 else tables[0]
        table.need([self.column], "data.init_args.text")
        codes = assign(self.split, table, self.column)
        faults = Faults(table.places, len(table), every=every)
        texts = table.texts(self.column)
        faults.add_all(np.flatnonzero(~texts.filled), lambda _: f"column '{self.column}': there is no text")
        self._check_leaks(table, codes, faults)
        labels = {}
        for name, task in tasks.items():
            task.name = name
            column = resolve_column(task, self.columns.get(name), table)
            if column.box is not None:
                raise ConfigError(f"data.init_args.columns.{name}.box: texts have no boxes; name the columns under columns")
            if task.names is None and task.kind == "class":
                self.found.add(name)
            labels[name] = read_labels(task, column, table, self.root, codes, faults, name in self.found)
        check_values(tasks, labels, texts, faults)
        return table, codes, labels, faults

    def _check_leaks(self, table: Table, codes: np.ndarray, faults: Faults) -> None:
        """Note texts of one split that are in another, too."""
        kinds, _ = table.codes(self.column)
        first: dict[int, int] = {}
        for row, kind in enumerate(kinds.tolist()):
            earlier = first.setdefault(kind, row)
            if codes[row] != codes[earlier] and table.cell(self.column, row):
                here, there = SPLITS[codes[row]], SPLITS[codes[earlier]]
                faults.add(
                    row, f"its text ({here}) is also in {table.places.where(earlier)} ({there}); no text may be in two splits"
                )
