"""Pictures to predict: a folder, a manifest, one file, or the rows of a split. No labels are read from files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch.utils.data import Dataset

from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.files import image_mode
from mtl_lightning.data.prepare import Preparation, Prepared
from mtl_lightning.data.seeding import sample_randomness
from mtl_lightning.data.table import read_table
from mtl_lightning.data.text.prepare import PreparedText, TextPreparation
from mtl_lightning.errors import DataError, MTLError

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
    """

    names: list[str]
    paths: list[str]
    note: str = ""


def find_pictures(inputs: Path, column: str = "image") -> Pictures:
    """List the pictures that ``--inputs`` means.

    Args:
        inputs: a folder, searched with its subfolders (hidden ones and links to folders are left out); a CSV or Parquet file,
            whose paths are relative to it; or one picture.
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


def check_pictures(pictures: Pictures) -> None:
    """Raise :class:`DataError` naming every file that is missing or has no picture's header."""
    bad = []
    for name, path in zip(pictures.names, pictures.paths, strict=True):
        try:
            image_mode(*os.path.split(path))
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

    def __len__(self) -> int:
        return len(self.pictures.names)

    def __getitem__(self, index: int) -> Prepared | Unreadable | MTLError:
        name = self.pictures.names[index]
        try:
            with sample_randomness(0, 0, index):
                return self.preparation.read(self.pictures.paths[index], name)
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
    """

    def __init__(self, dataset: LabelledDataset, preparation: Preparation | TextPreparation, seed: int) -> None:
        self.dataset, self.preparation, self.seed = dataset, preparation, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Prepared | PreparedText | Unreadable | MTLError:
        try:
            sample: dict[str, Any] = self.dataset[index]
            with sample_randomness(self.seed, 0, index):
                return self.preparation.sample(sample)
        except MTLError as error:
            return error


def as_they_are(items: list[Any]) -> list[Any]:
    """The collate of pictures that stay apart: what one gives must not depend on its neighbours' sizes."""
    return items


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", … ({len(names) - SHOWN} more)" if len(names) > SHOWN else "")
