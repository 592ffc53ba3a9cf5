"""Checkpoints that are whole at every moment, and the one before."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mtl_lightning.checkpoint import check_whole
from mtl_lightning.errors import CheckpointError
from mtl_lightning.runs import LAST, PREVIOUS
from mtl_lightning.storage import replacing, sync_folder


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, and renames: a kill leaves the old file or the new one, never half of one.

    Args:
        previous: keep the ``last.ckpt`` that is replaced as ``previous.ckpt``.
    """

    def __init__(self, previous: bool = False) -> None:
        self.previous = previous
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        """Save.

        Args:
            checkpoint: what to save.
            path: the target.
            storage_options: not used.

        Raises:
            CheckpointError: it cannot be written; what was saved before is untouched.
        """
        target = Path(path)
        with replacing(target, _then(target.parent), CheckpointError) as temporary:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if self.previous and target.name == LAST and self._worth_keeping(target):
                keep(target, target.with_name(PREVIOUS))
        sync_folder(target.parent)
        self._written.add(target)

    def _worth_keeping(self, target: Path) -> bool:
        # A run that went on from the previous one because the last is damaged must not lose it to the damaged one.
        if not target.exists():
            return False
        if target in self._written:
            return True
        try:
            check_whole(target)
        except CheckpointError:
            return False
        return True


def keep(path: Path, other: Path) -> None:
    """Give a file another name, in place of what had it; both are whole at every moment.

    Args:
        path: stays where it is, unless the file system has no links: there it is renamed.
        other: the other name, in the same folder.
    """
    if other.exists() and path.samefile(other):
        return  # from a save that was killed; renaming one of two links to the same file does nothing
    link = other.with_name(other.name + ".tmp")
    try:
        with suppress(FileNotFoundError):  # left by a kill
            link.unlink()
        os.link(path, link)
    except OSError:
        os.replace(path, other)
    else:
        os.replace(link, other)


def _then(folder: Path) -> str:
    left = sorted(file.name for file in folder.glob("*.ckpt")) if folder.is_dir() else []
    if not left:
        return "no checkpoint was saved yet: make room or set runs to another folder, and run again"
    return f"as saved before: {', '.join(left)}; make room or permit writing, then go on with --ckpt_path last"
