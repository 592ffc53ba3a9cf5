"""A manifest as read: every cell is text, every row knows its file and line."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from mtl_lightning.data.cells import check_cells, count_breaks
from mtl_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:  # pandas is imported where it is used: it costs a third of a second, and many runs need no manifest
    import pandas as pd


CHUNK = 8192
"""Texts that are decoded together."""


class Texts(Sequence[str]):
    """Many short texts in two arrays: no Python object per text, so that forked workers share the memory.

    Args:
        texts: in order.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        length = len(self._ends) - 1
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(length))]
        if not -length <= row < length:
            raise IndexError(f"row {row} of {length}")
        row %= length
        return self._bytes[self._ends[row] : self._ends[row + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), CHUNK):
            ends = self._ends[first : first + CHUNK + 1].tolist()
            content = self._bytes[ends[0] : ends[-1]].tobytes()
            for start, end in pairwise(ends):
                yield content[start - ends[0] : end - ends[0]].decode()

    @property
    def filled(self) -> np.ndarray:
        """Bool [N]: which are not empty."""
        return np.diff(self._ends) > 0


class Places:
    """Which file and line each row came from.

    Args:
        files: how messages call each file, and how many of the rows come from it.
        lines: [N] the number of each row within its file.
    """

    def __init__(self, files: Sequence[tuple[str, int]], lines: np.ndarray) -> None:
        self.files = list(files)
        self.lines = lines
        self._ends = np.cumsum([rows for _, rows in self.files])

    @property
    def name(self) -> str:
        """What messages call the whole."""
        return " + ".join(name for name, _ in self.files)

    @property
    def source(self) -> np.ndarray:
        """[N] the index of each row's file."""
        return np.repeat(np.arange(len(self.files)), [rows for _, rows in self.files])

    def where(self, row: int) -> str:
        """The file and line of a row."""
        file = int(np.searchsorted(self._ends, row, side="right"))
        return f"{self.files[file][0]}, row {self.lines[row]}"


class Table:
    """One manifest, or several one after the other.

    Args:
        frame: the cells as text; empty text is an empty cell.
        places: where the rows came from.
        exact: whether a class is named by the very text, so that 1.0 is not 1: of folders' names, not of numbers in a file.
    """

    def __init__(self, frame: "pd.DataFrame", places: Places, exact: bool = False) -> None:
        self.frame = frame
        self.places = places
        self.exact = exact

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def columns(self) -> list[str]:
        """The header."""
        return [str(column) for column in self.frame.columns]

    def need(self, columns: Sequence[str], key: str) -> None:
        """Raise :class:`ConfigError` naming ``key`` if a column is not in the header."""
        for column in columns:
            if column not in self.columns:
                has = ", ".join(self.columns)
                raise ConfigError(f"{key}: {self.places.name} has no column '{column}'; its columns are {has}")

    def with_first(self, columns: Sequence[str], name: str) -> "Table":
        """The table with a column more: in each row the first of some cells that is not empty."""
        if list(columns) == [name]:
            return self
        first = self._cells(columns[0])
        for column in columns[1:]:
            first = first.where(first != "", self._cells(column))
        return Table(self.frame.assign(**{name: first}), self.places, self.exact)

    def _cells(self, column: str) -> "pd.Series[str]":
        cells: pd.Series[str] = self.frame[column].str.strip()
        return cells

    def cell(self, column: str, row: int) -> str:
        """One cell."""
        return str(self.frame[column].iloc[row]).strip()

    def texts(self, column: str) -> Texts:
        """All cells of a column."""
        return Texts(self._cells(column).tolist())

    def codes(self, column: str) -> tuple[np.ndarray, list[str]]:
        """[N] which of the distinct texts each cell is, and these texts in order of appearance."""
        import pandas as pd

        codes, texts = pd.factorize(self._cells(column))
        return np.asarray(codes), [str(text) for text in texts]

    def numbers(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """The cells as numbers.

        Returns:
            float64 [N] with NaN where there is none that float32 can hold, and bool [N], where that is though there is text.
        """
        import pandas as pd

        cells = self._cells(column)
        numbers = np.array(pd.to_numeric(cells, errors="coerce"), dtype=np.float64)
        numbers[~(np.abs(numbers) <= np.finfo(np.float32).max)] = np.nan
        return numbers, np.isnan(numbers) & (cells != "").to_numpy(dtype=bool)


def read_table(path: Path, name: str) -> Table:
    """Read a CSV (UTF-8, with or without byte order mark, comma separated, with a header) or a Parquet file.

    Args:
        path: ending in ``.parquet``, or anything else for CSV.
        name: what messages call the file.

    Returns:
        Its rows; row numbers are lines of the CSV (the header is line 1) or, for Parquet, count from 1.

    Raises:
        DataError: there is no such file, or it cannot be read.
        ConfigError: Parquet without pyarrow.
    """
    if not path.is_file():
        raise DataError(f"there is no manifest {name} ({path}); look at data.init_args.root and manifest")
    return _read_parquet(path, name) if path.suffix.lower() == ".parquet" else _read_csv(path, name)


def _read_csv(path: Path, name: str) -> Table:
    import pandas as pd

    breaks = count_breaks(path, name)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            first = reader.line_num + 1
        _check_header(header, name)
        frame = pd.read_csv(path, encoding="utf-8-sig", dtype=str, keep_default_na=False, na_values=[], skip_blank_lines=False)
        if isinstance(frame.index, pd.RangeIndex):
            check_cells(path, name, len(header), len(frame))
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 ({error}); save it as CSV UTF-8") from error
    except (pd.errors.ParserError, csv.Error) as error:
        raise DataError(f"{name} is no proper CSV: {str(error).strip()}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"{name}, row {first}: the row has more cells than the header has columns ({len(header)})")
    frame.columns = pd.Index(header)
    lines = np.arange(first, first + len(frame))
    if breaks > first - 1 + len(frame):  # quoted cells with line breaks in them
        inside = sum((frame[column].str.count("\n").to_numpy() for column in header), np.zeros(len(frame), dtype=np.int64))
        lines[1:] += np.cumsum(inside)[:-1]
    blank = np.logical_and.reduce([(frame[column] == "").to_numpy(dtype=bool) for column in header])
    if blank.any():
        frame, lines = frame.loc[~blank].reset_index(drop=True), lines[~blank]
    return Table(frame, Places([(name, len(frame))], lines))


def _read_parquet(path: Path, name: str) -> Table:
    import pandas as pd

    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'reading {name} needs pyarrow: pip install "mtl-lightning[parquet]", or save it as CSV') from error
    try:
        frame = pd.read_parquet(path, engine="pyarrow", dtype_backend="numpy_nullable")
    except Exception as error:  # pyarrow raises many kinds for broken files: OSError, ValueError, KeyError, RuntimeError…
        raise DataError(f"{name} cannot be read as Parquet: {error}") from error
    _check_header([str(column) for column in frame.columns], name)
    text = pd.DataFrame({str(column): _as_text(frame[column]) for column in frame.columns}, dtype=str)
    return Table(text, Places([(name, len(text))], np.arange(1, len(text) + 1)))


def _as_text(cells: "pd.Series[Any]") -> "pd.Series[str]":
    import pandas as pd

    present = cells.dropna()
    if pd.api.types.is_float_dtype(cells.dtype):
        present = present[~np.isnan(present.to_numpy(dtype=float))]
        # Integers become floats as soon as one is missing; the class "3" must not turn into "3.0".
        if bool((present % 1 == 0).all()):
            present = present.astype("Int64")
    text: pd.Series[str] = present.astype(str).reindex(cells.index, fill_value="")
    return text


def _check_header(header: list[str], name: str) -> None:
    if not any(header):
        raise DataError(f"{name} is empty; its first line must name the columns")
    for column in header:
        if header.count(column) > 1:
            raise DataError(f"{name}: column '{column}' is there {header.count(column)} times; give each column its own name")


def join_tables(tables: Sequence[Table]) -> Table:
    """One table of several; a column that a file does not have is empty there."""
    import pandas as pd

    frame = pd.concat([table.frame for table in tables], ignore_index=True).fillna("")
    files = [file for table in tables for file in table.places.files]
    return Table(frame, Places(files, np.concatenate([table.places.lines for table in tables])))
