"""Opening files that nobody vouches for: their headers are read first, and what is wrong is a :class:`DataError` with a name."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from mtl_lightning.errors import DataError

MAX_PIXELS = 89_478_485
"""Pixels that a picture may have unless the configuration says otherwise: those from which on Pillow warns.

Decoded, colour takes a quarter of a gigabyte, and as floating-point numbers one, in each worker.
"""
PROGRAM = "EPS"
"""Pillow's name of PostScript, which it would hand to an interpreter if there is one."""


@contextmanager
def naming(text: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a :class:`DataError` that names it.

    Args:
        text: what messages call it.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"there is no file {text}") from error
    # Decoders of damaged bytes raise anything (AttributeError, ZeroDivisionError, …), and from version to version another.
    except Exception as error:
        raise DataError(f"{text} cannot be read ({type(error).__name__}: {error}); is it complete, and a picture?") from error


@contextmanager
def opened(path: str, text: str, max_pixels: int) -> Iterator[Image.Image]:
    """A picture of which the header is read, and nothing decoded.

    Args:
        path: where it is.
        text: what messages call it.
        max_pixels: what it may have.

    Raises:
        DataError: it is missing, broken, or has more.
    """
    with naming(text), _open(path, text, max_pixels) as image:
        if image.format == PROGRAM:
            raise DataError(f"{text} is PostScript, a program that draws a picture; save it as PNG")
        check_pixels(image, text, max_pixels)
        yield image


def _open(path: str, text: str, max_pixels: int) -> Image.Image:
    # Pillow has one limit for the process, here and where it decodes: it warns above that, and refuses twice as much.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise _too_large(text, f"more than {2 * max_pixels:,} pixels", max_pixels) from error


def check_pixels(image: Image.Image, text: str, max_pixels: int) -> None:
    """Raise :class:`DataError` for a picture that claims to have more pixels; nothing is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(text, f"{width} x {height} pixels", max_pixels)


def _too_large(text: str, claim: str, max_pixels: int) -> DataError:
    return DataError(
        f"{text} is too large: its header says {claim}, and data.init_args.max_pixels is {max_pixels:,}. It was not "
        "decoded; store it smaller, or raise the limit if it is meant to be so large"
    )


def read_numbers(path: str, text: str, max_pixels: int) -> np.ndarray:
    """The array in an NPY file, whose header is believed only if the file is as long as it says.

    Args:
        path: where it is.
        text: what messages call it.
        max_pixels: what each of three channels may have.

    Raises:
        DataError: it is missing, broken or cut off, holds no plain numbers, or is larger.
    """
    with naming(text), open(path, "rb") as file:
        shape, dtype = _header(file, text)
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if min(shape, default=1) < 0 or dtype.kind not in "buif":
            raise DataError(f"{text} holds {dtype} of shape {shape}, expected an array of plain numbers")
        if count > max_pixels * (3 if len(shape) == 3 else 1):
            raise _too_large(text, f"shape {shape}", max_pixels)
        there, said = os.fstat(file.fileno()).st_size - file.tell(), count * dtype.itemsize
        if there < said:
            raise DataError(f"{text} is cut off: {there:,} bytes of numbers where its header says {said:,}; save it anew")
        file.seek(0)
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _header(file: io.BufferedReader, text: str) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise DataError(f"{text} is NPY of version {version[0]}.{version[1]}, which holds no plain numbers; save it anew")
    shape, _, dtype = read(file)
    return shape, dtype
