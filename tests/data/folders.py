"""Tiny class folders of pictures of many modes, and of what lies around in such folders."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cow")
MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "I;16", "CMYK")
ENDINGS = {"RGB": "jpg", "CMYK": "JPEG", "1": "bmp"}


def write_picture(path: Path, number: int, mode: str = "RGB") -> Path:
    """A noisy picture of odd sides whose brightness says its class (``number % 3``)."""
    rng = np.random.default_rng(number)
    height, width = (int(side) | 1 for side in rng.integers(17, 40, 2))
    values = np.clip(60 * (number % len(CLASSES)) + 40 + rng.integers(-30, 30, (height, width)), 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray((values * 257).astype(np.uint16)).save(path)
        return path
    picture = Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if mode in ("RGBA", "LA"):
        picture.putalpha(255)
    picture.convert(mode).save(path)
    return path


def write_folders(
    root: Path, count: int = 24, splits: tuple[str, ...] = (), classes: tuple[str, ...] = CLASSES, first: int = 0
) -> list[Path]:
    """``root/ant/0.jpg`` …, or ``root/train/ant/0.jpg`` …, in turn, of every mode; hidden files and others beside them.

    Pictures are the same where their numbers are, which begin with ``first``.
    """
    paths = []
    for number in range(first, first + count):
        mode = MODES[number % len(MODES)] if number % 2 else "RGB"
        part = splits[number // len(classes) % len(splits)] if splits else ""
        name = f"{number}.{ENDINGS.get(mode, 'png')}"
        paths.append(write_picture(root / part / classes[number % len(classes)] / name, number, mode))
    (root / ".DS_Store").write_bytes(b"x")
    (paths[0].parent / ".hidden.jpg").write_bytes(b"x")
    (paths[0].parent / "Thumbs.db").write_bytes(b"x")
    (root / "notes.txt").write_text("x")
    return paths
