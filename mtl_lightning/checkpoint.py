"""Reading a checkpoint, and what tasks learnt in it. No Lightning."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from mtl_lightning.errors import CheckpointError
from mtl_lightning.tasks.base import Task

FOREIGN = re.compile(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)")
"""What torch did not want to build, in its messages."""
PARTS = ("state_dict", "global_step", "pytorch-lightning_version")
"""What every checkpoint of the trainer has."""


def load_checkpoint(path: Path, advise: bool = True) -> dict[str, Any]:
    """Read a checkpoint, safely, and only if every byte of it is as it was written.

    Args:
        path: the file.
        advise: let the error name another checkpoint beside it that can be used.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    try:
        return _read(path)
    except CheckpointError as error:
        if not advise or not path.is_file():
            raise
        raise CheckpointError(f"{error}; {advice(path)}") from error


def advice(path: Path) -> str:
    """What to use in place of a damaged checkpoint, for people."""
    other = usable_beside(path)
    return f"{other} beside it can be used: give its path" if other else "use an earlier checkpoint of the run"


def usable_beside(path: Path) -> Path | None:
    """The newest other checkpoint in the same folder that can be loaded."""
    others = [other for other in path.parent.glob("*.ckpt") if other.name != path.name and other.is_file()]
    for other in sorted(others, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            _read(other)
        except CheckpointError:
            continue
        return other
    return None


def check_whole(path: Path) -> None:
    """Compare the stored checksums of a checkpoint's parts: torch writes them, but does not look at them when it reads.

    Raises:
        CheckpointError: the file was cut off or changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    # Damaged bytes can mean an unknown version, an encryption, an impossible length: zipfile has an exception for each.
    except Exception as error:
        raise CheckpointError(f"{path}: is cut off or damaged ({error})") from error
    if wrong is not None:
        raise CheckpointError(f"{path}: is damaged (the checksum of its part {wrong} is wrong)")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint; give --ckpt_path last, best, or the path of a .ckpt file")
    if zipfile.is_zipfile(path):
        check_whole(path)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file fails in many ways inside zipfile, pickle and torch; what was raised is in the message.
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded safely ({_reason(error)}); it may be cut off, or not of this framework"
        ) from error
    lacking = [key for key in PARTS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if lacking:
        raise CheckpointError(f"{path}: holds no training state (no '{lacking[0]}'): it is no checkpoint of fit")
    return checkpoint


def _reason(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, UnpicklingError) and (found := FOREIGN.search(text)):
        # torch's own words are advice on how to load it all the same.
        return f"it would run {found[1]}, and only tensors and plain values are loaded"
    if "zip archive" in text:
        return "its end is missing"  # torch says so in three lines
    return f"{type(error).__name__}: {text.splitlines()[0][:160] if text else ''}"


def restore_tasks(tasks: Mapping[str, Task], state: Mapping[str, Any]) -> None:
    """Let tasks take over what a checkpoint's learnt from their training labels.

    Args:
        tasks: of this run.
        state: the checkpoint's ``state_dict``.

    Raises:
        CheckpointError: the checkpoint's tasks are others.
    """
    names = {key.split(".")[1] for key in state if key.startswith("tasks.")}
    if names != set(tasks):
        raise CheckpointError(
            f"the checkpoint has the tasks {sorted(names)}, this run has {sorted(tasks)}; "
            "name the same tasks (model.tasks, model.only) or start a new run"
        )
    for name, task in tasks.items():
        facts = state[f"tasks.{name}._extra_state"]
        if facts.get("kind") != task.kind:
            raise CheckpointError(
                f"task '{name}' of the checkpoint has labels of kind {facts.get('kind')}, here it is a {type(task).__name__} of "
                f"kind {task.kind}; configure the task that was trained"
            )
        task.restore(facts)
