"""One process at a time trains in a run folder."""

import errno
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from mtl_lightning.errors import ConfigError
from mtl_lightning.storage import writing

RUNNING = "running"
"""The file that whoever trains in a folder has locked; it says which process of which machine that is."""
THEN = "make room or permit writing, or set runs to another folder, and run again"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks answer."""


class Hold:
    """Holds a run folder until it is released, or the process ends in whatever way.

    It is a record lock (``lockf``) and not ``flock``: a forked process, such as a worker that outlives a killed run, does not
    have it, and it reaches to other machines that share the folder. In return, it would be lost if this process opened and
    closed the file once more. Where a file system has no locks nothing is held.

    Args:
        folder: of the run.

    Raises:
        ConfigError: another process holds it.
        StorageError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / RUNNING
        self._process = os.getpid()
        with writing(self._file, THEN):
            self._descriptor: int | None = self._taken()

    def _taken(self) -> int:
        while True:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(descriptor, self._file)
                # Whoever had it may have taken the file away between the two.
                if self._is(descriptor):
                    os.ftruncate(descriptor, 0)
                    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {now}\n".encode())
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _is(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._file))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others have the folder, and take the file away."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None or os.getpid() != self._process:
            return
        # On a disk that became read-only it has to stay; so does another run's, if this one's folder was removed.
        with suppress(OSError):
            if self._is(descriptor):
                self._file.unlink()
        os.close(descriptor)


def check_free(folder: Path) -> None:
    """Raise :class:`ConfigError` where another process trains in a run folder."""
    file = folder / RUNNING
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return  # nobody does, or nobody lets us know
    try:
        _lock(descriptor, file, shared=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, file: Path, shared: bool = False) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.lockf(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        holder = os.pread(descriptor, 300, 0).decode(errors="replace").strip() or "another process"
        raise ConfigError(
            f"{file.parent} is being trained by {holder}: two in one run folder would spoil it; wait for its end, end it, or set "
            f"another name for a run of its own. If its machine has died and the lock is left over, remove {file}"
        ) from error
