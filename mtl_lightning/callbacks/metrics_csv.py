"""metrics.csv: every logged number of a run, one a row."""

import csv
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mtl_lightning.analysis.logged import FIELDS, read_rows
from mtl_lightning.errors import StorageError
from mtl_lightning.storage import replacing, writing

THEN = "checkpoints saved so far are whole: make room or permit writing, then go on with --ckpt_path last"


class MetricsCSV(Logger):
    """An append-only table ``step, epoch, name, value`` in the run folder.

    One number a row, because which numbers there are changes from step to step: nothing is ever rewritten but on a resume, when
    the rows from the checkpoint on are cut off. ``pandas.read_csv(...).pivot_table(index="step", columns="name",
    values="value")`` gives the wide form.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._file: TextIO | None = None

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.folder.name

    @property
    def version(self) -> str:
        """Empty: the folder says it all."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.folder)

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return str(self.folder)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "metrics.csv"

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append numbers; raises :class:`~mtl_lightning.errors.StorageError` where they cannot be written."""
        epoch = int(metrics.get("epoch", 0))
        rows = [(step, epoch, name, repr(float(value))) for name, value in metrics.items() if name != "epoch"]
        try:
            with writing(self.path, THEN):
                file = self._opened()
                csv.writer(file).writerows(rows)
                file.flush()
        except StorageError:
            self._drop()
            raise

    def _opened(self) -> TextIO:
        if self._file is None or self._file.closed:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = not self.path.exists()
            self._file = self.path.open("a", newline="", encoding="utf-8")
            if fresh:
                csv.writer(self._file).writerow(FIELDS)
        return self._file

    def _drop(self) -> None:
        # Closing flushes once more, what could not be written a moment ago.
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Keep only the whole rows of earlier steps, when a run goes on from a checkpoint."""
        if not self.path.exists():
            return
        if self._file is not None:
            self._file.close()
        rows = [row for row in read_rows(self.path) if int(row[0]) < step]
        with replacing(self.path, THEN) as new, new.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([FIELDS, *rows])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        self._drop()


def last_values(file: Path, prefix: str) -> dict[str, float]:
    """What was logged last under each name that begins so; nothing where there is no file."""
    if not file.exists():
        return {}
    return {name: float(value) for _, _, name, value in read_rows(file) if name.startswith(prefix)}
