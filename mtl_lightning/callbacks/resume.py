"""What a resumed run needs beside weights: random streams, the configuration it was trained with, the metrics so far."""

import random
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info

from mtl_lightning.callbacks.carried import carry_over, stays_stopped
from mtl_lightning.callbacks.metrics_csv import MetricsCSV

MISSING = "(not set)"


class Resume(Callback):
    """Keeps the random generators and the resolved configuration in checkpoints, and picks both up again.

    On resume it prints every value that differs from the checkpoint's configuration (the new one is used) and cuts metrics.csv
    back to the checkpoint.

    Args:
        config: the resolved configuration as YAML.
        same_folder: the run goes on in its own folder.
        started: called when a run goes on in its folder, once its checkpoint has turned out to fit.
    """

    def __init__(self, config: str, same_folder: bool, started: Callable[[], None]) -> None:
        self.config = config
        self.started = started
        self.same_folder = same_folder
        self._states: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add generators, configuration, and whether something (early stopping, say) has ended the run."""
        kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global stream is what is kept
        version, state, gauss = random.getstate()
        checkpoint["mtl_config"] = self.config
        checkpoint["mtl_stopping"] = bool(trainer.should_stop)
        checkpoint["mtl_random"] = {
            "python": [version, list(state), gauss],
            "numpy": [kind, keys.tolist(), position, has_gauss, cached],  # type: ignore[union-attr, attr-defined]
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Print what differs, in fit."""
        if trainer.state.fn != "fit":
            return
        self._states = checkpoint.get("mtl_random")
        _begin_next_epoch(checkpoint["loops"]["fit_loop"])
        changes = differences(checkpoint.get("mtl_config", ""), self.config)
        if changes:
            rank_zero_info("Configuration that differs from the checkpoint (the new value is used):\n" + "\n".join(changes))
        carry_over(trainer, checkpoint)
        if self.same_folder and stays_stopped(checkpoint, [line.split(":")[0].strip() for line in changes]):
            trainer.should_stop = True
            rank_zero_info(
                "The run had been stopped by a callback (early stopping, say) and stays so; to train on, change that callback or "
                "trainer.max_epochs"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the generators after everything else that draws from them."""
        if self.same_folder:
            self.started()
            for logger in trainer.loggers:
                if isinstance(logger, MetricsCSV):
                    logger.cut(trainer.global_step)
        if self._states is None:
            return
        version, state, gauss = self._states["python"]
        random.setstate((version, tuple(state), gauss))
        kind, keys, *rest = self._states["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(self._states["torch"].cpu())
        if torch.cuda.is_available() and len(self._states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in self._states["cuda"]])
        self._states = None


def _begin_next_epoch(loops: dict[str, Any]) -> None:
    """Let a checkpoint of an epoch's end start the next one.

    With ``max_steps`` the trainer would otherwise begin the finished epoch again, find nothing left in it, and end it twice.
    """
    epoch, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if epoch["current"]["started"] != epoch["current"]["processed"]:
        return
    for span in ("total", "current"):
        epoch[span]["completed"] = epoch[span]["processed"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False


def differences(old: str, new: str) -> list[str]:
    """The values that differ between two configurations in YAML, a line each."""
    before, after = _flat(yaml.safe_load(old) or {}), _flat(yaml.safe_load(new) or {})
    return [
        f"  {key}: {before.get(key, MISSING)} -> {after.get(key, MISSING)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, MISSING) != after.get(key, MISSING)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else str(key)).items()}
    return {prefix: value}
