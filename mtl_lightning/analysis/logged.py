"""Reading metrics.csv."""

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

FIELDS = ("step", "epoch", "name", "value")


def read_rows(metrics: Path) -> list[list[str]]:
    """The whole rows of a run's metrics.csv, without its heading: not those that a kill has cut or a disk has damaged."""
    with metrics.open(newline="", encoding="utf-8", errors="replace") as file:
        # A line without its end was cut by a kill; half of a number is a number, too.
        lines = [line for line in file if line.endswith("\n") and "\ufffd" not in line and "\0" not in line]
    rows = (row for row in csv.reader(lines) if len(row) == len(FIELDS))
    return [row for row in rows if row[0].isdecimal() and row[1].isdecimal() and _is_number(row[3])]


def read_table(metrics: Path) -> "DataFrame":
    """The same as a table of numbers."""
    # It takes half a second to import, which `--help` has no need of.
    import pandas as pd

    table = pd.DataFrame(read_rows(metrics), columns=list(FIELDS))
    return table.astype({"step": int, "epoch": int, "value": float})


def _is_number(text: str) -> bool:
    try:
        return text == "nan" or not math.isnan(float(text))
    except ValueError:
        return False
