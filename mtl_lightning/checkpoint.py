"""Reading a checkpoint, and what tasks learnt in it. No Lightning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mtl_lightning.errors import CheckpointError
from mtl_lightning.tasks.base import Task


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, safely.

    Raises:
        CheckpointError: the file is missing, broken, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint; give --ckpt_path last, best, or the path of a .ckpt file")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file fails in many ways inside zipfile, pickle and torch; what was raised is in the message.
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CheckpointError(
            f"{path}: not a checkpoint that can be loaded safely ({type(error).__name__}: {first[:160]}); "
            "it may be truncated, or not from this framework: use an earlier checkpoint of the run"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path}: holds no training state (no 'state_dict'); use a checkpoint of fit")
    return checkpoint


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
