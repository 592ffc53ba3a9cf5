"""Reading pictures and labels that are pictures. Every error is a :class:`DataError` that names the file.

Pictures are turned as their EXIF orientation says, label files are not: labels belong to the picture as it is seen.
"""

import os
import posixpath
import re

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors

from mtl_lightning.data.opening import MAX_PIXELS, check_pixels, opened, read_numbers
from mtl_lightning.errors import DataError

ORIENTATION = 0x0112
DRIVE = re.compile("[A-Za-z]:" if os.name == "nt" else "[A-Za-z]:/")
"""How an absolute path of Windows begins, there even without a slash; elsewhere a file may be called ``a:b``."""
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def resolve(root: str, text: str) -> str:
    r"""The path of a file that a manifest names.

    Args:
        root: the folder that paths are relative to.
        text: a path with ``/`` or ``\``; it must stay below ``root``.

    Raises:
        DataError: it leaves ``root``.
    """
    relative = text.replace("\\", "/")
    if DRIVE.match(relative):
        raise DataError(f"{text} begins with a drive; write paths relative to data.init_args.root")
    if ".." in relative or relative.startswith("/"):
        base = os.path.normpath(os.path.abspath(root)).replace("\\", "/")
        relative = posixpath.relpath(posixpath.normpath(posixpath.join(base, relative)), base)
        if relative == ".." or relative.startswith("../"):
            raise DataError(f"{text} is not below the data module's root; write paths relative to data.init_args.root")
    return os.path.join(root, relative)


def image_size(root: str, text: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture as it is seen, from its header."""
    with opened(resolve(root, text), text, max_pixels) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else (height, width)


def image_mode(root: str, text: str, max_pixels: int = MAX_PIXELS) -> str:
    """How the pixels of a picture are stored, in Pillow's words (``RGB``, ``L``, ``P``…), from its header."""
    with opened(resolve(root, text), text, max_pixels) as image:
        return str(image.mode)


def read_image(root: str, text: str, channels: int, max_pixels: int = MAX_PIXELS) -> tv_tensors.Image:
    """Read a picture of any size and mode.

    Transparent parts become white, 16 bits are brought to 8 over their full range, colour and grey are converted.

    Args:
        root: the folder that paths are relative to.
        text: the path.
        channels: 1 or 3.
        max_pixels: what it may have; more is refused before it is decoded.

    Returns:
        uint8 [channels, H, W].

    Raises:
        DataError: it is missing, broken or too large, or its pixels are floating-point numbers, whose range nobody knows.
    """
    with opened(resolve(root, text), text, max_pixels) as image:
        return as_pixels(image, text, channels, max_pixels)


def as_pixels(image: Image.Image, text: str, channels: int, max_pixels: int = MAX_PIXELS) -> tv_tensors.Image:
    """The pixels of an opened picture as :func:`read_image` gives them; raises what Pillow raises for broken files."""
    check_pixels(image, text, max_pixels)
    image.load()
    pixels = np.array(_convert(image, text, "RGB" if channels == 3 else "L"))
    return tv_tensors.Image(torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous())


def _convert(image: Image.Image, text: str, mode: str) -> Image.Image:
    seen: Image.Image = image
    if image.getexif().get(ORIENTATION, 1) != 1:
        seen = ImageOps.exif_transpose(image)
    if seen.mode == "F":
        raise DataError(f"{text} is a picture of floating-point numbers; save it with 8 or 16 bits per channel")
    if seen.mode in SIXTEEN_BIT:
        wide = np.asarray(seen).astype(np.int64).clip(0, 65535)
        seen = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif seen.has_transparency_data:
        rgba = seen.convert("RGBA")
        seen = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return seen if seen.mode == mode else seen.convert(mode)


def read_array(root: str, text: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The numbers in an NPY file, or the pixels of a picture as they are stored (a palette's indices)."""
    path = resolve(root, text)
    if path.lower().endswith(".npy"):
        return read_numbers(path, text, max_pixels)
    with opened(path, text, max_pixels) as image:
        image.load()
        return np.array(image)


def _plane(array: np.ndarray, text: str, what: str) -> np.ndarray:
    """[H, W] of an array that may have an axis of length 1 before or behind."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or not array.size:
        raise DataError(f"{text} has shape {array.shape}, expected one channel of {what}; save it as a picture without colours")
    return array


def read_mask(root: str, text: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Whole numbers [H, W] from PNG, TIFF or NPY; a palette picture gives its indices.

    Raises:
        DataError: it is missing, broken or too large, has colour channels, or holds floating-point numbers.
    """
    array = _plane(read_array(root, text, max_pixels), text, "class values")
    if array.dtype == bool:
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{text} holds {array.dtype} numbers, expected whole numbers, one per class")
    return array


def read_depth(root: str, text: str, scale: float, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """float32 [1, H, W] in metres from PNG, TIFF or NPY; 0 where the file has no positive, finite number.

    Args:
        root: the folder that paths are relative to.
        text: the path.
        scale: metres per unit of the file.
        max_pixels: what it may have.

    Raises:
        DataError: it is missing, broken or too large, has colour channels or is no array of numbers.
    """
    array = _plane(read_array(root, text, max_pixels), text, "depths")
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise DataError(f"{text} holds {array.dtype} values, expected numbers")
    depth = array.astype(np.float32) * np.float32(scale)
    depth[~(np.isfinite(depth) & (depth > 0))] = 0
    return depth[None]


def read_normals(root: str, text: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Unit vectors float32 [3, H, W], x to the right, y up, z to the viewer; zero where there is none.

    A picture holds (n * 0.5 + 0.5) * 255 in red, green and blue, and has no normal where it is black or encodes (nearly) the
    zero vector. An NPY file holds floating-point numbers in -1..1, [H, W, 3] or [3, H, W], none where zero or NaN.

    Raises:
        DataError: it is missing, broken or too large, or not encoded like this.
    """
    array = read_array(root, text, max_pixels)
    encoded = not text.lower().endswith(".npy")
    if array.ndim == 3 and array.shape[-1] == 3:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != 3 or not array.size or array.dtype.kind != ("u" if encoded else "f"):
        expected = "an RGB picture of 8 bits per channel" if encoded else "floating-point numbers [height, width, 3] in -1..1"
        raise DataError(f"{text} holds {array.dtype} of shape {array.shape}, expected {expected}")
    if encoded:
        normals = np.where((array == 0).all(0), np.float32(0), array.astype(np.float32) / np.float32(127.5) - 1)
    else:
        normals = array.astype(np.float32)
        normals[:, ~np.isfinite(normals).all(0)] = 0
        if np.abs(normals).max() > 1.01:
            raise DataError(f"{text} has entries up to {np.abs(normals).max():g}, expected unit vectors with entries in -1..1")
    length = np.sqrt((normals**2).sum(0))
    normals[:, length < 0.1] = 0
    unit: np.ndarray = normals / np.where(length < 0.1, np.float32(1), length)
    return unit
