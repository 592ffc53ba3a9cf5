"""results.json holds a column for each device; results.md shows them side by side."""

import json
from collections.abc import Sequence
from pathlib import Path

from paired import Row

HERE = Path(__file__).parent


def write(folder: Path, column: str, settings: str, part: str, rows: Sequence[Row]) -> None:
    """Replace one part of one column, keep what else was measured, and write the tables anew."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    mine = found.setdefault(column, {"settings": settings, "parts": {}})
    mine["settings"] = settings
    mine["parts"][part] = [row.stored() for row in rows]
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(page(found), encoding="utf-8")


def page(found: dict[str, dict[str, object]]) -> str:
    """The tables, a line for each thing measured and a column for each device."""
    cells: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    for column, measured in found.items():
        for rows in measured["parts"].values():  # type: ignore[attr-defined]
            for row in (Row(**stored) for stored in rows):
                cells.setdefault(row.section, {}).setdefault((row.what, row.target), {})[column] = row.cell()
    lines = ["# Results", "", "Medians of pairs (quartiles). Written by measure.py; what is measured is in README.md.", ""]
    lines += [f"- {column}: {measured['settings']}" for column, measured in found.items()]
    for section, table in cells.items():
        lines += ["", f"## {section}", "", "| | target | " + " | ".join(found) + " |", "|---" * (2 + len(found)) + "|"]
        lines += [
            f"| {what} | {target} | " + " | ".join(by_column.get(column, "") for column in found) + " |"
            for (what, target), by_column in table.items()
        ]
    return "\n".join(lines) + "\n"
