"""Writing files whole or not at all; a full or read-only disk becomes one clear message."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mtl_lightning.errors import MTLError, StorageError

logger = logging.getLogger(__name__)


@contextmanager
def writing(path: Path, then: str, error: type[MTLError] = StorageError) -> Iterator[None]:
    """Turn what goes wrong while a file is written into an error for people.

    Args:
        path: the file, or the folder of several.
        then: what is left and what to do.
        error: its class.

    Raises:
        MTLError: of class ``error``, naming the path, the reason and the free space.
    """
    try:
        yield
    # torch's writer turns a full disk into a RuntimeError about positions, which was raised while the disk's own was handled.
    except (OSError, RuntimeError) as raised:
        cause = _of_the_disk(raised)
        if cause is None:
            raise
        raise error(f"{path} cannot be written: {cause.strerror or cause}{_free(path)}; {then}") from raised


@contextmanager
def replacing(path: Path, then: str, error: type[MTLError] = StorageError) -> Iterator[Path]:
    """Write beside the target and rename: a kill or a full disk leaves the old file or the new one, never half of one.

    Args:
        path: the target; its folder is made.
        then: what is left and what to do, for the message.
        error: the class of the error.

    Yields:
        The path to write to. It is removed where writing fails.

    Raises:
        MTLError: as in :func:`writing`.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path, then, error):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # on a disk that became read-only it has to stay
                temporary.unlink()
            raise


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path of the user's, in which ``~`` is the home folder, as the shell would have it at the beginning of a word."""
    return Path(os.path.expanduser(path))


def sync_folder(folder: Path) -> None:
    """Let a rename in a folder survive a power cut, where its file system can."""
    with suppress(OSError):  # some network file systems, and Windows, cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_text(path: Path, text: str, then: str = "make room or set runs to another folder, and run again") -> None:
    """Write a text file whole, also where power fails; raises :class:`StorageError`."""
    with replacing(path, then) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a run says; nothing where there is none, and, with a warning, where it is damaged."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it does not begin with {")
    except ValueError as error:
        logger.warning("WARNING: %s is damaged (%s); going on as if it were not there", path, error)
        return {}
    return found


def _of_the_disk(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _free(path: Path) -> str:
    folder = next((parent for parent in (path, *path.parents) if parent.is_dir()), None)
    try:
        return f" ({shutil.disk_usage(folder).free / 2**20:.1f} MiB are free in {folder})" if folder is not None else ""
    except OSError:
        return ""
