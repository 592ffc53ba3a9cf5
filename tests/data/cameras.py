"""A tiny manifest of two cameras: pictures of different sizes, of which rows may lack one."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.manifest import write_rows

SHADES = ("dark", "bright")
HEADER = ["left_image", "right_image", "split", "shade", "tone", "mask"]


def write_cameras(root: Path, count: int = 24) -> list[dict[str, str]]:
    """``cameras.csv``: of every four rows one lacks the left picture and one the right one.

    ``shade`` and ``mask`` are of the left picture, ``tone`` is of the right one, whose sides are swapped. A mask says which
    pixels are bright.
    """
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        row = dict.fromkeys(HEADER, "") | {"split": ("train", "train", "val", "test")[number // 4 % 4]}
        if number % 4 != 3:
            picture = _picture(row, root, f"left/{number}.png", "left_image", rng, number % 2, (20, 24))
            row["shade"] = SHADES[number % 2]
            row["mask"] = f"masks/{number}.png"
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray((picture[..., 0] > 128).astype(np.uint8)).save(root / row["mask"])
        if number % 4 != 2:
            _picture(row, root, f"right/{number}.png", "right_image", rng, number // 2 % 2, (24, 16))
            row["tone"] = SHADES[number // 2 % 2]
        rows.append(row)
    write_rows(root / "cameras.csv", rows, HEADER)
    return rows


def _picture(
    row: dict[str, str], root: Path, path: str, column: str, rng: np.random.Generator, bright: int, size: tuple[int, int]
) -> np.ndarray:
    picture = np.asarray(rng.integers(0, 60, (*size, 3)) + 90 * bright + 40, dtype=np.uint8)
    picture[: size[0] // 2] += 40
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(root / path)
    row[column] = path
    return picture
