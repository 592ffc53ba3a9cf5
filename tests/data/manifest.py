"""A tiny manifest with pictures, masks, depth and normals, in the layout of a real one, and one of it with most labels hidden."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BREEDS = {"abyssinian": "cat", "bengal": "cat", "beagle": "dog"}
HEADER = [
    *("image", "split", "breed", "species", "mask", "head_xmin", "head_ymin", "head_xmax", "head_ymax"),
    *("smiling", "hat", "age", "depth", "normals"),
]
DENSE = {"mask": "masks/{}.png", "depth": "depth/{}.npy", "normals": "normals/{}.png"}
COLUMNS: dict[str, Any] = {
    "head": {"box": ["head_xmin", "head_ymin", "head_xmax", "head_ymax"]},
    "attributes": ["smiling", "hat"],
    "mask": {"column": "mask", "values": {1: "pet", 2: "background"}, "ignore": [3]},
    "depth": {"column": "depth", "scale": 0.001},
}
"""The value of ``data.init_args.columns``; breed, species, age and normals have columns of their own names."""


def write_rows(path: Path, rows: list[dict[str, str]], header: list[str] | None = None) -> None:
    """Write a CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_manifest(root: Path, count: int = 24, labelled: float = 0.4, seed: int = 0) -> list[dict[str, str]]:
    """Write ``all.csv`` with every label, ``partial.csv`` with training labels hidden, and the files.

    Args:
        root: an empty folder.
        count: rows; of every nine, the last three are test rows.
        labelled: the share of the training labels that ``partial.csv`` keeps.
        seed: of everything.

    Returns:
        The rows of ``all.csv``.
    """
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks", "depth", "normals"):
        (root / folder).mkdir(parents=True)
    rows = [_row(root, number, rng) for number in range(count)]
    write_rows(root / "all.csv", rows, HEADER)
    labels = [("breed",), ("species",), ("age",), ("smiling",), ("hat",), HEADER[5:9], *((kind,) for kind in DENSE)]
    partial = [dict(row) for row in rows]
    for row in partial:
        for columns in labels:
            if row["split"] == "train" and rng.random() > labelled:
                row.update(dict.fromkeys(columns, ""))
    write_rows(root / "partial.csv", partial, HEADER)
    return rows


def _row(root: Path, number: int, rng: np.random.Generator) -> dict[str, str]:
    breed = list(BREEDS)[number % len(BREEDS)]
    height, width = (int(side) for side in rng.integers(20, 40, 2))
    name = f"{breed}_{number}"
    x0, y0 = rng.integers(1, width // 2), rng.integers(1, height // 2)
    x1, y1 = rng.integers(x0 + 4, width), rng.integers(y0 + 4, height)
    mask = np.full((height, width), 2, dtype=np.uint8)
    mask[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = 3
    mask[y0:y1, x0:x1] = 1
    picture = np.where(mask[..., None] == 1, 60 * (number % 3) + 100, 40) + rng.integers(0, 40, (height, width, 3))
    Image.fromarray(picture.astype(np.uint8)).save(root / f"images/{name}.jpg")
    Image.fromarray(mask).save(root / DENSE["mask"].format(name))
    np.save(root / DENSE["depth"].format(name), np.where(mask == 3, 0, mask.astype(np.uint16) * 1000 + number))
    normals = np.zeros((height, width, 3))
    normals[..., 2] = 1
    normals[mask == 1] = (0.6, 0, 0.8)
    encoded = np.where(mask[..., None] == 3, 0, (normals * 0.5 + 0.5) * 255).round().astype(np.uint8)
    Image.fromarray(encoded).save(root / DENSE["normals"].format(name))
    box = dict(zip(HEADER[5:9], map(str, (x0, y0, x1, y1)), strict=True))
    files = {kind: path.format(name) for kind, path in DENSE.items()}
    others = {"smiling": "yes" if number % 2 else "0", "hat": str(number % 3 // 2), "age": f"{rng.random() * 10:.3f}"}
    place = {"image": f"images/{name}.jpg", "split": "test" if number // 3 % 3 == 2 else "train"}
    return {**place, "breed": breed, "species": BREEDS[breed], **box, **others, **files}
