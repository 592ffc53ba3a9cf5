"""Pictures to predict: a folder, a manifest, one file, or the rows of a split. No labels are read from files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch.utils.data import DataLoader, Dataset

from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.files import image_mode
from mtl_lightning.data.opening import MAX_PIXELS
from mtl_lightning.data.prepare import Preparation, Prepared, together
from mtl_lightning.data.seeding import sample_randomness
from mtl_lightning.data.table import read_table
from mtl_lightning.data.text.prepare import PreparedText, TextPreparation
from mtl_lightning.data.workers import Workers, worker_options
from mtl_lightning.errors import DataError, MTLError
from mtl_lightning.inputs import IMAGE

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2")
"""What files in a folder are taken for pictures."""
TABLES = (".csv", ".parquet")
SHOWN = 10
OnError = Literal["raise", "skip"]


class Unreadable(NamedTuple):
    """A picture that is left out.

    Attributes:
        id: its name.
        reason: what is wrong with it.
    """

    id: str
    reason: str


class Pictures(NamedTuple):
    """Files to predict.

    Attributes:
        names: what results call them: the path within the folder, or the manifest's cell.
        paths: of the files.
        note: what was left out of a folder, in a line; empty if nothing was.
        rows: where a row has several pictures, their paths by input; ``names`` are then those of the first.
    """

    names: list[str]
    paths: list[str]
    note: str = ""
    rows: Sequence[Mapping[str, str]] = ()


def find_pictures(inputs: Path, column: str = "image") -> Pictures:
    """List the pictures that ``--inputs`` means.

    Args:
        inputs: a folder, searched with its subfolders (hidden ones and links to folders are left out); a CSV or Parquet file,
            whose paths are relative to it; or one picture. Unlike those of a data set, which somebody else may have made, its
            paths may lead anywhere (absolute, by ``..``, by links): whoever predicts names the file, and what is to be read.
        column: of the CSV's paths.

    Raises:
        DataError: there is nothing at ``inputs``, or no picture.
        ConfigError: the CSV has no such column.
    """
    if inputs.is_dir():
        return _in_folder(inputs)
    if not inputs.is_file():
        raise DataError(f"--inputs {inputs}: there is no such file or folder; give a folder of pictures, a CSV, or one picture")
    if inputs.suffix.lower() not in TABLES:
        return Pictures([inputs.name], [str(inputs)])
    table = read_table(inputs, inputs.name)
    table.need([column], "--column")
    names = list(table.texts(column))
    empty = [table.places.where(row) for row, name in enumerate(names) if not name]
    if empty or not names:
        problem = f"there is no picture in column '{column}' of {_some(empty)}" if names else "the table has no row"
        raise DataError(f"--inputs {inputs}: {problem}; fill it, or remove the row")
    return Pictures(names, [os.path.join(inputs.parent, name.replace("\\", "/")) for name in names])


def find_rows(inputs: Path, columns: Mapping[str, str]) -> Pictures:
    """List the rows of several pictures that ``--inputs`` means.

    Args:
        inputs: a CSV or Parquet file, whose paths are relative to it; an empty cell is no picture.
        columns: input → column.

    Raises:
        DataError: there is no such file, or a row without any picture.
        ConfigError: a column is missing.
    """
    if not inputs.is_file() or inputs.suffix.lower() not in TABLES:
        raise DataError(
            f"--inputs {inputs}: the run reads several pictures a row; give a CSV with the columns {', '.join(columns.values())}"
        )
    table = read_table(inputs, inputs.name)
    table.need(list(columns.values()), "data.init_args.inputs")
    texts = {name: table.texts(column) for name, column in columns.items()}
    rows = [{name: cells[row] for name, cells in texts.items() if cells[row]} for row in range(len(table))]
    empty = [table.places.where(row) for row, found in enumerate(rows) if not found]
    if empty or not rows:
        problem = f"there is no picture in {_some(empty)}" if rows else "the table has no row"
        raise DataError(f"--inputs {inputs}: {problem}; fill it, or remove the row")
    paths = [{name: os.path.join(inputs.parent, text.replace("\\", "/")) for name, text in found.items()} for found in rows]
    names = [next(iter(found.values())) for found in rows]
    return Pictures(names, [next(iter(found.values())) for found in paths], rows=paths)


def _in_folder(folder: Path) -> Pictures:
    names: list[str] = []
    others: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            name = os.path.relpath(os.path.join(place, file), folder).replace(os.sep, "/")
            (names if file.lower().endswith(SUFFIXES) and not file.startswith(".") else others).append(name)
    if not names:
        files_there = f"other files ({_some(others)})" if others else "no file at all"
        raise DataError(
            f"--inputs {folder}: there is no picture in this folder or below, but {files_there}; "
            f"pictures end in {', '.join(SUFFIXES)}"
        )
    note = (
        f"Ignored, no pictures by their names: {len(others)} of {len(others) + len(names)} files ({_some(others)})"
        if others
        else ""
    )
    return Pictures(sorted(names), [os.path.join(folder, name) for name in sorted(names)], note)


def check_pictures(pictures: Pictures, max_pixels: int = MAX_PIXELS) -> None:
    """Raise :class:`DataError` naming every file that is missing, has no picture's header, or has more pixels than it may."""
    bad = []
    for name, paths in zip(pictures.names, pictures.rows or [{"": path} for path in pictures.paths], strict=True):
        for path in paths.values():
            try:
                image_mode(*os.path.split(path), max_pixels)
            except DataError as error:
                bad.append(f"  {name}: {error}")
    if bad:
        more = [f"  … and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        count = "one picture that cannot" if len(bad) == 1 else f"{len(bad)} pictures that cannot"
        listing = "\n".join([*bad[:SHOWN], *more])
        raise DataError(f"--inputs has {count} be read:\n{listing}\nMend or remove them, or leave them out with --on_error skip")


class FilesToPredict(Dataset[Prepared | Unreadable | MTLError]):
    """Pictures of :func:`find_pictures`, prepared.

    Args:
        pictures: which.
        preparation: as in evaluation.
        on_error: ``skip`` yields :class:`Unreadable` for a file that cannot be read, ``raise`` the error as a value (a worker
            would wrap a raised one in its traceback).
    """

    def __init__(self, pictures: Pictures, preparation: Preparation, on_error: OnError) -> None:
        self.pictures, self.preparation, self.on_error = pictures, preparation, on_error
        self.names: Sequence[str] = pictures.names

    def __len__(self) -> int:
        return len(self.pictures.names)

    def __getitem__(self, index: int) -> Prepared | Unreadable | MTLError:
        name = self.pictures.names[index]
        try:
            with sample_randomness(0, 0, index):
                if not self.pictures.rows:
                    return self.preparation.read(self.pictures.paths[index], name)
                paths = self.pictures.rows[index]
                return together(name, {read: self.preparation.read(path, name) for read, path in paths.items()})
        except DataError as error:
            if self.on_error == "raise":
                return DataError(f"{error}; mend or remove it, or leave such pictures out with --on_error skip")
            return Unreadable(name, str(error).removeprefix(f"{name}: "))


class RowsToPredict(Dataset[Prepared | PreparedText | Unreadable | MTLError]):
    """The pictures or texts of a split, prepared.

    Args:
        dataset: the split.
        preparation: as in evaluation.
        seed: of transforms that draw, as in evaluation.
        inputs: names of the pictures that a row may have.
    """

    def __init__(
        self,
        dataset: LabelledDataset,
        preparation: Preparation | TextPreparation,
        seed: int,
        inputs: Sequence[str] = (IMAGE,),
    ) -> None:
        self.dataset, self.preparation, self.seed, self.inputs = dataset, preparation, seed, list(inputs)
        self.names = dataset.ids

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Prepared | PreparedText | Unreadable | MTLError:
        try:
            sample: dict[str, Any] = self.dataset[index]
            if isinstance(self.preparation, TextPreparation):
                return self.preparation.sample(sample)
            found = {name: self._prepare(self.preparation, sample, name, index) for name in self.inputs if name in sample}
            return together(str(sample["id"]), found) if len(self.inputs) > 1 else found[self.inputs[0]]
        except MTLError as error:
            return error

    def _prepare(self, preparation: Preparation, sample: Mapping[str, Any], name: str, index: int) -> Prepared:
        with sample_randomness(self.seed, 0, index):
            return preparation.prepare(sample[name], str(sample["id"]))


def _as_they_are(items: list[Any]) -> list[Any]:
    """The collate of pictures that stay apart: what one gives must not depend on its neighbours' sizes."""
    return items


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", … ({len(names) - SHOWN} more)" if len(names) > SHOWN else "")


class PreparedBatches:
    """Batches of what is to be predicted, and nothing else: the trainer would take a ``DataLoader`` apart.

    Args:
        rows: with ``names``.
        batch_size: of them.
        num_workers: processes that prepare batches; their errors are raised here.
        timeout: seconds that a batch may take in the workers; 0 waits for ever.
    """

    def __init__(self, rows: Dataset[Any], batch_size: int, num_workers: int, timeout: float) -> None:
        self.timeout = timeout
        self.loader = DataLoader(rows, batch_size, collate_fn=_as_they_are, **worker_options(num_workers, timeout))

    def __iter__(self) -> Iterator[list[Prepared | PreparedText | Unreadable]]:
        taken = 0

        def rows() -> list[str]:
            names: Sequence[str] = self.loader.dataset.names  # type: ignore[attr-defined]
            return [names[row] for row in range(taken, min(taken + (self.loader.batch_size or 1), len(names)))]

        watch = Workers(self.timeout)
        for items in watch.watched(self.loader.__iter__, rows):
            taken += len(items)
            for item in items:
                if isinstance(item, MTLError):
                    watch.end()
                    raise item
            yield items

    def __len__(self) -> int:
        return len(self.loader)
