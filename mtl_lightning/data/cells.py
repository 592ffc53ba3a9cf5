"""Whether a CSV has all its cells: a parser fills what is missing with empty ones, which would be missing labels."""

import csv
import re
from pathlib import Path

from mtl_lightning.errors import DataError

CHUNK = 1 << 20
QUOTED = re.compile(rb'"[^"]*"')


def count_breaks(path: Path, name: str) -> int:
    """The number of line feeds in a file.

    Args:
        path: of the CSV.
        name: what messages call it.

    Raises:
        DataError: there are NUL bytes in it, which no text has.
    """
    breaks = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if (place := chunk.find(b"\0")) >= 0:
                row = breaks + chunk.count(b"\n", 0, place) + 1
                raise DataError(f"{name}, row {row}: there are NUL bytes, so the file is damaged or not UTF-8; save it anew")
            breaks += chunk.count(b"\n")
    return breaks


def check_cells(path: Path, name: str, columns: int, rows: int) -> None:
    """Raise :class:`DataError` naming the rows that have fewer cells than the header; a blank line is no row.

    Args:
        path: of the CSV.
        name: what messages call it.
        columns: of the header.
        rows: below the header, blank lines included.
    """
    content = path.read_bytes()
    commas = (QUOTED.sub(b"", content) if b'"' in content else content).count(b",")
    if commas == (rows + 1) * (columns - 1):
        return  # no row has more, or else it could not have been parsed
    del content
    short = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        short = [(reader.line_num, len(cells)) for cells in reader if 0 < len(cells) < columns]
    if short:
        line, cells = short[0]
        others = f" ({len(short)} rows are so)" if len(short) > 1 else ""
        raise DataError(
            f"{name}, row {line}: {cells} cell{'s' * (cells > 1)}, and the header has {columns} columns{others}; is the file cut "
            "off? An empty cell needs its comma, too"
        )
