"""The checkpoint of the best epoch."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from mtl_lightning.monitor import check_monitor, check_tunable, direction


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``: the epoch with the best monitored value.

    Args:
        folder: where.
        monitor: a logged validation value.
        mode: whether it is to be large or small; None knows it from the value.
    """

    def __init__(self, folder: Path, monitor: str, mode: Literal["min", "max"] | None) -> None:
        # Behind the validation also where an epoch ends: in one that is stopped, last.ckpt is saved there, and has to know of it.
        super().__init__(
            folder,
            filename="best",
            monitor=monitor,
            mode=mode or "max",
            save_top_k=1,
            save_on_train_epoch_end=monitor.startswith("train/"),
            enable_version_counter=False,
        )
        self._given = mode
        self._followed = {monitor: "no best.ckpt is saved"}
        self._told: set[str] = set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a monitor that will never be logged, and thresholds that could never be chosen, before training."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.monitor is None:
            return
        counts = trainer.datamodule.counts().get("val", {})  # type: ignore[attr-defined]
        check_tunable(pl_module.tasks, counts if trainer.enable_validation else {})  # type: ignore[arg-type]
        main = [name for name, task in pl_module.tasks.items() if not task.auxiliary]  # type: ignore[union-attr, operator]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping):
                check_monitor("trainer.callbacks EarlyStopping.monitor", callback.monitor, pl_module, counts)
                # It is known by now, and where a validation does not have it, no reason to end the run.
                callback.strict = False
                self._followed.setdefault(callback.monitor, "early stopping does not look at it")
        labelled = any(counts.get(str(name), (0, 0))[0] for name in main)
        if self.monitor in ("val/score", "val/loss") and not (labelled and trainer.limit_val_batches):
            self.save_top_k = 0
            del self._followed[self.monitor]
            why = "No main task has a validation label" if trainer.limit_val_batches else "Nothing is validated"
            rank_zero_info(f"{why}: there is no best.ckpt, only last.ckpt.")
            return
        check_monitor("checkpoint.monitor", self.monitor, pl_module, counts)
        self.mode = direction("checkpoint.mode", self.monitor, self._given, pl_module)
        self.kth_value = torch.tensor(float("inf") if self.mode == "min" else -float("inf"))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As the parent, where the validation has the value: without a label that counts it has none."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        for key, use in self._followed.items():
            if key.startswith("val/") and key not in self._told and key not in trainer.callback_metrics:
                self._told.add(key)
                rank_zero_warn(f"The validation met no label that counts for {key}: {use}.")
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As the parent; an epoch that was stopped has no value of its own."""
        if trainer.is_last_batch and self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the parent, which forgets the score that it saved last."""
        super().load_state_dict(state_dict)
        if self.dirpath == state_dict.get("dirpath"):
            self.current_score = state_dict.get("current_score")
