"""Predictions on disk: one CSV, files for what is no single value, and a contact sheet."""

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback

from mtl_lightning.analysis.sheet import Cell, contact_sheet
from mtl_lightning.data.pictures import Unreadable
from mtl_lightning.errors import ConfigError
from mtl_lightning.predictor import to_results
from mtl_lightning.storage import writing
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.results import Result

SHOWN = 12
"""Pictures of the contact sheet, spread over all."""


def check_folder(folder: Path) -> Path:
    """The folder that predictions are written to until they are whole; raises :class:`ConfigError` where there are some."""
    partial = folder.with_name(folder.name + ".partial")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} has files already; move them away, or choose another place with --folder")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another place with --folder")
    if partial.exists():
        raise ConfigError(
            f"{partial} is there: a predict is running, or was cut off; move it away, or choose another place with --folder"
        )
    return partial


class PredictionWriter(Callback):
    """``predictions.csv`` with a row per picture or text; masks, depth and normals as files whose paths stand in the cells.

    All is written as it comes into ``FOLDER.partial``, which gets its name only when it is whole.

    Args:
        folder: new, or empty.
        source: what is predicted and with what, for ``predictions.json``.
    """

    def __init__(self, folder: Path, source: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.partial = check_folder(self.folder)
        self.source = source or {}
        self._file: Any = None
        self._table: csv.DictWriter[str] | None = None
        self._row = 0
        self._columns: dict[str, list[str]] = {}
        self._waiting: list[dict[str, str]] = []
        self._cells: list[Cell] = []
        self._skipped: list[Unreadable] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the table."""
        if trainer.world_size > 1:
            raise ConfigError("predict runs on one process: set trainer.devices to 1")
        with self._writing():
            self.partial.mkdir(parents=True)
            self._file = (self.partial / "predictions.csv").open("w", newline="", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch."""
        tasks: dict[str, Task] = dict(pl_module.tasks.items())  # type: ignore[operator, union-attr]
        pictures = [item for item in batch if not isinstance(item, Unreadable)]
        self._skipped += [item for item in batch if isinstance(item, Unreadable)]
        reads: Mapping[str, str] = pl_module.inputs  # type: ignore[assignment]
        shown = _spread(batch_idx, int(trainer.num_predict_batches[0]), len(pictures))
        for number, (picture, raw) in enumerate(zip(pictures, outputs, strict=True)):
            with self._writing():
                self._write(picture.id, picture.text, to_results(tasks, raw, picture, reads), list(tasks))
            if number in shown:
                self._cells.append(Cell.of(picture, raw, reads))

    def _write(self, name: str, text: str | None, results: dict[str, Result], tasks: Sequence[str]) -> None:
        stem = re.sub(r"\W+", "_", Path(name).stem)[:60]
        row = {"id": name} if text is None else {"id": name, "text": text}
        for task, result in results.items():
            place = self.partial / task / f"{self._row:06d}_{stem}"
            files = _saved(result, place)
            paths = {column: path.relative_to(self.partial).as_posix() for column, path in files.items()}
            cells = {f"{task}.{column}" if column else task: cell for column, cell in (result.cells() | paths).items()}
            self._columns.setdefault(task, list(cells))
            row |= cells
        self._waiting.append(row)
        self._row += 1
        # A task's columns are known from its first result; where rows lack inputs, that may be some rows later.
        if len(self._columns) == len(tasks):
            self._write_waiting(tasks)

    def _write_waiting(self, tasks: Sequence[str]) -> None:
        if self._table is None:
            columns = [column for task in tasks for column in self._columns.get(task, [])]
            first = ["id", "text"] if self._waiting and "text" in self._waiting[0] else ["id"]
            self._table = csv.DictWriter(self._file, [*first, *columns], restval="")
            self._table.writeheader()
        self._table.writerows(self._waiting)
        self._waiting.clear()
        self._file.flush()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the table, draw the sheet, and give the folder its name."""
        tasks: dict[str, Task] = dict(pl_module.tasks.items())  # type: ignore[operator, union-attr]
        with self._writing():
            self._write_waiting(list(tasks))
            self._file.close()
            about = self.source | {"pictures": self._row, "tasks": {name: task.describe() for name, task in tasks.items()}}
            (self.partial / "predictions.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            if self._skipped:
                with (self.partial / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([("id", "reason"), *self._skipped])
            if self._cells:
                contact_sheet(self._cells, tasks, self.partial / "contact_sheet.png")
            if self.folder.is_dir():
                self.folder.rmdir()
            os.replace(self.partial, self.folder)
        print("\n".join([*self._notes(), f"{self._row} predictions are in {self.folder / 'predictions.csv'}"]), flush=True)

    def _notes(self) -> list[str]:
        notes = []
        if self._skipped:
            first = "; ".join(f"{item.id}: {item.reason}" for item in self._skipped[:3])
            more = "; …" if len(self._skipped) > 3 else ""
            notes.append(f"Left out, cannot be read: {len(self._skipped)} pictures, all in skipped.csv ({first}{more})")
        return notes

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say what is left."""
        if self._file is not None and not self._file.closed:
            with suppress(OSError):  # of a full disk the exception itself tells
                self._write_waiting(list(self._columns))
            with suppress(OSError):
                self._file.close()
            print(f"Cut off: the first {self._row} predictions are in {self.partial}", flush=True)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self.partial, "make room, or choose another place with --folder")


def _saved(result: Result, stem: Path) -> dict[str, Path]:
    try:
        return result.save(stem)
    except FileNotFoundError:
        # The first file of a task; most tasks have none and get no folder.
        stem.parent.mkdir()
        return result.save(stem)


def _spread(batch: int, batches: int, rows: int) -> Sequence[int]:
    """Which rows of a batch are on the sheet."""
    places = ((number + 0.5) * batches / SHOWN for number in range(SHOWN))
    return sorted({int((place - batch) * rows) for place in places if int(place) == batch})
