"""Decoded pictures kept in memory or in a memory-mapped file, so that each is decoded once and not in every epoch."""

import hashlib
import mmap
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mtl_lightning.data.files import image_size, resolve
from mtl_lightning.data.opening import MAX_PIXELS
from mtl_lightning.errors import ConfigError, DataError

GB = 10**9


@dataclass
class ImageCache:
    """Where decoded pictures are kept.

    Attributes:
        where: ``ram`` (one copy per process of the run, shared by its workers; gone when the run ends) or ``disk`` (a
            memory-mapped file that later runs and all processes of this machine use, too).
        gigabytes: the budget for training and validation together, > 0, in 10⁹ bytes; rows beyond it are decoded each time.
            Under ``ram`` it is divided by the processes on this machine.
        folder: of the file; needed for ``disk``.
    """

    where: Literal["ram", "disk"] = "ram"
    gigabytes: float = 2.0
    folder: str | None = None

    def check(self) -> None:
        """Raise :class:`ConfigError` for settings that contradict each other.

        Not done when built, since the command line would wrap the message in its own.
        """
        if not 0 < self.gigabytes < float("inf"):
            raise ConfigError(f"data.init_args.cache.gigabytes is {self.gigabytes}, expected > 0")
        if (self.where == "disk") != (self.folder is not None):
            raise ConfigError(f"data.init_args.cache: where is {self.where}; give a folder for disk, and none for ram")


@dataclass
class Plan:
    """Which rows have a place, and where.

    Attributes:
        sizes: [N, 2] height and width, 0 for a row without a place.
        ends: [N] where each row's bytes end.
        channels: of the pictures.
    """

    sizes: np.ndarray
    ends: np.ndarray
    channels: int

    @property
    def rows(self) -> int:
        """How many rows have a place."""
        return int((self.sizes[:, 0] > 0).sum())

    @property
    def nbytes(self) -> int:
        """What the rows and their checksums take."""
        return int(8 * len(self.ends) + (self.ends[-1] if len(self.ends) else 0))


def plan(root: str, images: Sequence[str], channels: int, budget: int, max_pixels: int = MAX_PIXELS) -> Plan:
    """Give the rows their places in order, until one does not fit.

    Reads pictures' headers; a picture without a proper one has no place.

    Args:
        root: the folder that paths are relative to.
        images: the paths.
        channels: of the decoded pictures.
        budget: bytes.
        max_pixels: what a picture may have.
    """
    sizes = np.zeros((len(images), 2), dtype=np.int64)
    left = budget - 8 * len(images)
    for row, text in enumerate(images):
        try:
            height, width = image_size(root, text, max_pixels)
        except DataError:
            continue
        left -= channels * height * width
        if left < 0:
            break
        sizes[row] = height, width
    return Plan(sizes, np.cumsum(channels * sizes.prod(1)), channels)


class Kept:
    """The pictures of one split, each stored when it is first read.

    Every process and worker maps the same bytes. A row counts as stored once its checksum is written, which is after its bytes;
    two that store the same row at once write the same.

    Args:
        plan: the rows' places.
        memory: ``plan.nbytes`` bytes, zeros where nothing is stored: a checksum per row, then the rows.
    """

    def __init__(self, plan: Plan, memory: mmap.mmap) -> None:
        self.plan = plan
        self._memory = memory
        rows = len(plan.ends)
        self._sums = np.frombuffer(memory, dtype=np.int64, count=rows)
        self._bytes = np.frombuffer(memory, dtype=np.uint8, offset=8 * rows)
        self._trusted = np.zeros(rows, dtype=bool)

    def __getstate__(self) -> dict[str, Any]:
        """Workers that are not forked would each get a copy."""
        raise ConfigError(
            "data.init_args.cache needs workers that are forked, which this system does not do; set num_workers to 0, or "
            "leave the cache out"
        )

    def read(self, row: int, decode: Callable[[], Tensor]) -> Tensor:
        """The picture uint8 [C, H, W], from the cache or else from ``decode``, whose result is then stored."""
        height, width = self.plan.sizes[row].tolist()
        if not height:
            return decode()
        shape = (self.plan.channels, height, width)
        end = int(self.plan.ends[row])
        place = self._bytes[end - shape[0] * height * width : end]
        if self._sums[row]:
            stored = place.copy()
            # Once in each process: a file may have been left half written when the machine, not just the process, went down.
            if self._trusted[row] or _sum(stored) == self._sums[row]:
                self._trusted[row] = True
                return torch.from_numpy(stored).view(shape)
        picture = decode()
        if tuple(picture.shape) == shape:
            place[:] = picture.numpy().reshape(-1)
            self._sums[row] = _sum(place)
            self._trusted[row] = True
        return picture

    @property
    def stored(self) -> int:
        """How many rows are there by now."""
        return int((self._sums != 0).sum())


def _sum(values: np.ndarray) -> int:
    return zlib.crc32(values.data) + 1  # 0 means that nothing is stored


def keep(
    cache: ImageCache,
    split: str,
    processes: int,
    root: str,
    images: Sequence[str],
    channels: int,
    used: int,
    max_pixels: int = MAX_PIXELS,
) -> Kept | None:
    """The kept pictures of a split; says how many fit.

    Args:
        cache: the settings.
        split: its name.
        processes: of this run on this machine.
        root: the folder that paths are relative to.
        images: the paths of the split's rows.
        channels: of the decoded pictures.
        used: bytes that other splits took.
        max_pixels: what a picture may have.

    Returns:
        None where not one row fits.

    Raises:
        ConfigError: the memory or the disk has no such room, or the folder cannot be written.
    """
    budget = int(cache.gigabytes * GB) // (processes if cache.where == "ram" else 1) - used
    places = plan(root, images, channels, budget, max_pixels)
    among = f", divided by {processes} processes" if cache.where == "ram" and processes > 1 else ""
    rank_zero_info(
        f"cache: {places.rows} of {len(images)} {split} pictures fit ({cache.where}, {places.nbytes / GB:.2f} of "
        f"{cache.gigabytes:g} GB{among})"
    )
    if not places.rows:
        return None
    if cache.where == "ram":
        return Kept(places, _memory(places.nbytes, processes))
    return Kept(places, _file(Path(os.path.expanduser(str(cache.folder))), places, root, images))


def _memory(nbytes: int, processes: int) -> mmap.mmap:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    if 0 < pages < nbytes * processes:
        raise ConfigError(
            f"data.init_args.cache.gigabytes: {nbytes * processes / GB:.1f} GB of pictures would be kept, but the machine has "
            f"{pages / GB:.1f} GB of memory; lower it, or set where to disk"
        )
    try:
        # Not torch's shared memory: containers allow that 64 MB, and going beyond kills the worker.
        return mmap.mmap(-1, nbytes)
    except OSError as error:
        raise ConfigError(
            f"data.init_args.cache: no {nbytes / GB:.1f} GB of memory ({error.strerror}); lower gigabytes"
        ) from error


def _file(folder: Path, places: Plan, root: str, images: Sequence[str]) -> mmap.mmap:
    """Map the file of exactly these pictures, made now if it is not there.

    Its name holds what is in it (paths, sizes and times of the pictures' files), so that one that was made of other files is
    never opened; the ones of earlier states of the same rows are removed.
    """
    config, state = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
    config.update(repr((os.path.realpath(root), places.channels)).encode())
    config.update(b"\0".join(text.encode() for text in images))
    # Another version of the decoder may round otherwise.
    state.update(PIL.__version__.encode() + places.ends.tobytes() + places.sizes.tobytes())
    for row in np.flatnonzero(places.sizes[:, 0]).tolist():
        status = os.stat(resolve(root, images[row]))
        state.update(repr((status.st_size, status.st_mtime_ns)).encode())
    path = folder / f"pictures-{config.hexdigest()}-{state.hexdigest()}.cache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            for old in folder.glob(f"pictures-{config.hexdigest()}-*.cache"):
                if old != path:  # another process may have made it just now
                    old.unlink(missing_ok=True)  # who has it open keeps it
            _make(path, places.nbytes)
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), places.nbytes)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"data.init_args.cache: cannot keep {places.nbytes / GB:.2f} GB in {folder} ({error}); "
            "choose another folder, or lower gigabytes"
        ) from error


def _make(path: Path, nbytes: int) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        # All the room now: a full disk would kill the process that writes to the mapped memory.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, nbytes)
        else:
            os.truncate(handle, nbytes)
        with suppress(FileExistsError):  # another process was first: then its file is taken
            os.link(name, path)
    finally:
        os.close(handle)
        os.unlink(name)
