"""What Lightning's own callbacks keep in a checkpoint, where a run that goes on would not be the one that was cut."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

ENDING = ("trainer.callbacks", "trainer.max_", "trainer.min_", "trainer.limit_train_batches")
"""Keys that decide where a run ends."""


def carry_over(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Change what callbacks are about to load.

    The configured patience holds: :class:`EarlyStopping` would take the checkpoint's. Best checkpoints in a run folder that was
    moved are still the best: :class:`ModelCheckpoint` would forget them, and let a worse epoch overwrite them.

    Args:
        trainer: with the callbacks.
        checkpoint: as loaded; changed in place.
    """
    states = checkpoint.get("callbacks", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key)
        if state and isinstance(callback, EarlyStopping):
            states[callback.state_key] = state | {"patience": callback.patience}
        elif state and isinstance(callback, ModelCheckpoint):
            states[callback.state_key] = _moved(state, callback.dirpath)


def _moved(state: dict[str, Any], now: Any) -> dict[str, Any]:
    before = state.get("dirpath")
    if before is None or now is None or before == now:
        return state

    def place(path: str) -> str:
        file = Path(path)
        return str(Path(now) / file.name) if path and str(file.parent) == str(before) else path

    found = dict(state)
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        found[key] = place(found.get(key, ""))
    found["best_k_models"] = {place(path): score for path, score in found.get("best_k_models", {}).items()}
    # A folder without these files is that of a new run, which has its own best.
    whole = all(Path(path).is_file() for path in found["best_k_models"])
    return found | {"dirpath": now} if whole and found["best_k_models"] else state


def stays_stopped(checkpoint: dict[str, Any], changed: list[str]) -> bool:
    """Whether a callback had ended the run, and nothing that decides about that is configured in another way now.

    Args:
        checkpoint: as loaded.
        changed: keys of the configuration.
    """
    return bool(checkpoint.get("mtl_stopping", False)) and not any(key.startswith(ENDING) for key in changed)
