"""Checkpoints that are whole, at moments a run can go on from."""

import os
import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from mtl_lightning.callbacks.signals import StopRequest
from mtl_lightning.errors import CheckpointError
from mtl_lightning.monitor import check_monitor, check_tunable, direction
from mtl_lightning.storage import replacing


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, and renames: a kill leaves the old file or the new one, never half of one."""

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
        with replacing(target, _then(target.parent), CheckpointError) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def _then(folder: Path) -> str:
    left = sorted(file.name for file in folder.glob("*.ckpt")) if folder.is_dir() else []
    if not left:
        return "no checkpoint was saved yet: make room or set runs to another folder, and run again"
    return f"as saved before: {', '.join(left)}; make room or permit writing, then go on with --ckpt_path last"


def validation_due(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the trainer validates right after this training batch."""
    if not trainer.enable_validation:
        return False
    every = trainer.check_val_every_n_epoch
    if every is not None and (trainer.current_epoch + 1) % every:
        return False
    check = trainer.val_check_batch
    if check is None:
        # Validation by the clock: nobody knows, and a validation after the save costs a resumed run no more than itself.
        return False
    if check == float("inf"):
        return trainer.is_last_batch
    seen = batch_idx if every is not None else trainer.fit_loop.total_batch_idx
    return (seen + 1) % max(1, int(check)) == 0


class LastCheckpoint(Checkpoint):
    """``last.ckpt``: after every epoch, and in mid-epoch every so many steps or minutes.

    Where a validation is due at the same batch it is saved after it, so that no validation is lost between the two.

    Args:
        folder: where.
        every_n_steps: optimizer steps between saves within an epoch.
        every_minutes: minutes between saves within an epoch.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None, every_minutes: float | None = None) -> None:
        self.path = Path(folder) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self._step = 0
        self._clock = time.monotonic()
        self._pending = False
        self._stepped = False
        self._stop = StopRequest()

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self._step, self._clock, self._pending = trainer.global_step, time.monotonic(), False

    def _due(self, trainer: pl.Trainer) -> bool:
        steps = self.every_n_steps is not None and trainer.global_step - self._step >= self.every_n_steps
        late = self.every_minutes is not None and time.monotonic() - self._clock >= 60 * self.every_minutes
        return bool(trainer.strategy.broadcast(steps or late)) if trainer.world_size > 1 else steps or late

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here, and listen to Ctrl-C."""
        self._step, self._clock = trainer.global_step, time.monotonic()
        if trainer.world_size == 1:
            # Several processes get the signal in different steps, and one alone cannot save.
            self._stop.listen()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no longer."""
        self._stop.leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self._stop.leave()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop on request; what was saved before stands."""
        if self._stop.asked:
            raise KeyboardInterrupt

    def _finish(self, trainer: pl.Trainer) -> None:
        """Save where a signal ends the run."""
        self._save(trainer)
        print(f"Stopped after step {trainer.global_step}, saved {self.path}; --ckpt_path last goes on from there.", flush=True)
        if self._stop.asked:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save in mid-epoch, and where the run ends; only between optimizer steps: accumulated gradients are in no checkpoint."""
        self._stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if trainer.is_last_batch or not self._stepped:
            return
        self._halt(trainer, pl_module)
        if self._stop.asked or (trainer.received_sigterm and trainer.world_size == 1):
            self._finish(trainer)
            return
        if not (self._ends(trainer) or self._due(trainer)):
            return
        if validation_due(trainer, batch_idx):
            self._pending = True
        else:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what was due at the batch before the validation, or where the validation ends the run in mid-epoch."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self._pending or (self._ends(trainer) and self._stepped and not trainer.is_last_batch):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after every whole epoch: here, the trainer's counters call one that was cut short a whole one, too."""
        if self._stop.asked and trainer.is_last_batch:
            self._finish(trainer)
        elif trainer.is_last_batch:
            self._halt(trainer, pl_module)
            self._save(trainer)

    def _halt(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End a run that must not go on, with all that it has learnt saved."""
        if (error := getattr(pl_module, "halt", None)) is not None:
            self._save(trainer)
            raise error

    @staticmethod
    def _ends(trainer: pl.Trainer) -> bool:
        least = trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
        return (trainer.should_stop and least) or 0 < trainer.max_steps <= trainer.global_step


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``: the epoch with the best monitored value.

    Args:
        folder: where.
        monitor: a logged validation value.
        mode: whether it is to be large or small; None knows it from the value.
    """

    def __init__(self, folder: Path, monitor: str, mode: Literal["min", "max"] | None) -> None:
        super().__init__(folder, filename="best", monitor=monitor, mode=mode or "max", save_top_k=1, enable_version_counter=False)
        self._given = mode

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
        labelled = any(counts.get(str(name), (0, 0))[0] for name in main)
        if self.monitor in ("val/score", "val/loss") and not (labelled and trainer.limit_val_batches):
            self.save_top_k = 0
            why = "No main task has a validation label" if trainer.limit_val_batches else "Nothing is validated"
            rank_zero_info(f"{why}: there is no best.ckpt, only last.ckpt.")
            return
        check_monitor("checkpoint.monitor", self.monitor, pl_module, counts)
        self.mode = direction("checkpoint.mode", self.monitor, self._given, pl_module)
        self.kth_value = torch.tensor(float("inf") if self.mode == "min" else -float("inf"))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the parent, which forgets the score that it saved last."""
        super().load_state_dict(state_dict)
        if self.dirpath == state_dict.get("dirpath"):
            self.current_score = state_dict.get("current_score")
