"""Whole files of every kind that is read, and ways to damage them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from mtl_lightning.data.files import read_depth, read_image, read_mask, read_normals

HEIGHT, WIDTH = 13, 17
LIMIT = 100_000
"""Pixels that damaged headers may claim."""
CLASSES = np.random.default_rng(0).integers(0, 5, (HEIGHT, WIDTH))
COLOURS = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def picture(kind: str, mode: str, **options: Any) -> bytes:
    """A picture as a file's bytes."""
    image = Image.fromarray(COLOURS)
    if mode == "I;16":
        image = Image.fromarray((CLASSES * 1000).astype(np.uint16))
    elif mode == "P":
        image = Image.fromarray(CLASSES.astype(np.uint8)).convert("P")
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def array(values: np.ndarray) -> bytes:
    """An NPY file's bytes."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def turned() -> Image.Exif:
    """EXIF that says that a picture lies on its side."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    return exif


NORMALS = np.zeros((HEIGHT, WIDTH, 3), dtype=np.float32) + np.array([0, 0, 1], dtype=np.float32)
WHOLE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg": ("image", lambda: picture("JPEG", "RGB", exif=turned())),
    "progressive jpeg": ("image", lambda: picture("JPEG", "L", progressive=True)),
    "png": ("image", lambda: picture("PNG", "RGBA")),
    "png of 16 bits": ("depth", lambda: picture("PNG", "I;16")),
    "palette png": ("mask", lambda: picture("PNG", "P")),
    "tiff": ("image", lambda: picture("TIFF", "RGB", compression="tiff_lzw")),
    "tiff as it is": ("mask", lambda: picture("TIFF", "L")),
    "tiff with a jpeg in it": ("image", lambda: picture("TIFF", "RGB", compression="jpeg")),
    "webp": ("image", lambda: picture("WEBP", "RGB")),
    "lossless webp": ("image", lambda: picture("WEBP", "RGBA", lossless=True)),
    "gif": ("mask", lambda: picture("GIF", "P")),
    "bmp": ("image", lambda: picture("BMP", "RGB")),
    "palette bmp": ("mask", lambda: picture("BMP", "P")),
    "npy mask": ("mask", lambda: array(CLASSES)),
    "npy depth": ("depth", lambda: array(CLASSES.astype(np.float32))),
    "npy normals": ("normals", lambda: array(NORMALS)),
    "png of normals": ("normals", lambda: picture("PNG", "RGB")),
}
"""Kind of file → what is read from it, and its bytes."""
SUFFIX = {"jpeg": ".jpg", "png": ".png", "tiff": ".tif", "webp": ".webp", "gif": ".gif", "bmp": ".bmp", "npy": ".npy"}


def suffix(kind: str) -> str:
    """The ending of such files."""
    return next(ending for word, ending in SUFFIX.items() if word in kind)


@st.composite
def damaged(draw: st.DrawFn, kind: str) -> bytes:
    """The bytes of a file after one to three accidents."""
    content = bytearray(WHOLE[kind][1]())
    for _ in range(draw(st.integers(1, 3))):
        # Half of them in the header, where most of what can go wrong is said.
        place = draw(st.integers(0, min(80, len(content))) | st.integers(0, len(content)))
        block = draw(st.binary(min_size=1, max_size=8) | st.integers(1, 200).map(bytes))
        match draw(st.sampled_from(["flip", "flip", "cut", "insert", "overwrite", "drop", "huge", "empty"])):
            case "flip":
                content[place : place + 1] = (
                    bytes([content[place] ^ 1 << draw(st.integers(0, 7))]) if place < len(content) else b""
                )
            case "cut":
                del content[place:]
            case "insert":
                content[place:place] = block
            case "overwrite":
                content[place : place + len(block)] = block
            case "drop":
                del content[place : place + len(block)]
            case "huge":
                content[place : place + 2] = b"\xff\xfe"
            case "empty":
                content.clear()
    return bytes(content)


def read(folder: Path, name: str, what: str) -> np.ndarray:
    """Read what a file is declared to hold, and check that it is that."""
    root = str(folder)
    if what == "image":
        pixels = read_image(root, name, 3, LIMIT).numpy()
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[0] == 3
    elif what == "mask":
        pixels = read_mask(root, name, LIMIT)
        assert pixels.dtype.kind in "ui" and pixels.ndim == 2
    elif what == "depth":
        pixels = read_depth(root, name, 0.001, LIMIT)
        assert pixels.dtype == np.float32 and pixels.shape[0] == 1 and (np.isfinite(pixels) & (pixels >= 0)).all()
    else:
        pixels = read_normals(root, name, LIMIT)
        length = np.sqrt((pixels**2).sum(0))
        assert pixels.shape[0] == 3 and (np.isclose(length, 1, atol=1e-3) | (length == 0)).all()
    assert 0 < pixels[0].size <= LIMIT
    return pixels
