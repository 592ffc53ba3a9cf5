"""Progress with every task's loss: a bar in a terminal, lines elsewhere."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only


class TaskBar(RichProgressBar):
    """Lightning's rich bar with the latest loss of each task."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        latest: dict[str, float] = pl_module.latest  # type: ignore[assignment]
        return {name: f"{value:.3f}" for name, value in latest.items()} | items


class EpochLines(Callback):
    """A line per epoch, for logs that are no terminal."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's mean losses and the score."""
        means, rows = pl_module.train_losses.compute()  # type: ignore[union-attr, operator]
        tasks = zip(pl_module.tasks, means.tolist(), rows.tolist(), strict=True)  # type: ignore[arg-type]
        losses = "  ".join(f"{name} {mean:.3f}" for name, mean, labelled in tasks if labelled)
        values = trainer.callback_metrics
        score = f"  val/score {float(values['val/score']):.3f}" if "val/score" in values else ""
        seconds = time.monotonic() - self._start
        last = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        print(f"epoch {trainer.current_epoch + 1}{last} ({seconds:.0f} s)  {losses}{score}", flush=True)
