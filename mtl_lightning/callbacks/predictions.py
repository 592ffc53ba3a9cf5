"""Predictions on disk: one CSV, and a file a row for what is no single value."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch import Callback
from torch import Tensor

from mtl_lightning.errors import ConfigError


class PredictionWriter(Callback):
    """``predictions.csv`` with a row per sample and a column per task.

    Class names, label names joined by ``|`` and numbers stand in the cell; masks, depth and normals are written to
    ``TASK/ROW.npy`` at the size the network saw, and the cell holds that path.

    Args:
        folder: new, or empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._file: Any = None
        self._row = 0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the table."""
        if trainer.world_size > 1:
            raise ConfigError("predict runs on one process: set trainer.devices to 1")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} has predictions already; move them away first")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = (self.folder / "predictions.csv").open("w", newline="", encoding="utf-8")
        csv.writer(self._file).writerow(["id", *pl_module.tasks])  # type: ignore[misc]

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch."""
        table = csv.writer(self._file)
        for position, name in enumerate(outputs["ids"]):
            cells = [self._cell(task, values[position]) for task, values in outputs["predictions"].items()]
            table.writerow([name, *cells])
            self._row += 1

    def _cell(self, task: str, value: Any) -> str:
        if isinstance(value, Tensor):
            path = self.folder / task / f"{self._row:06d}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, value.cpu().numpy())
            return f"{task}/{path.name}"
        if isinstance(value, list):
            return "|".join(f"{item:.6g}" if isinstance(item, float) else str(item) for item in value)
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the table."""
        self._file.close()
        print(f"{self._row} predictions are in {self.folder / 'predictions.csv'}", flush=True)
