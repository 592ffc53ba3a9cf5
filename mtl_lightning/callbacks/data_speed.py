"""Whether training waits for its data: samples per second and the share of the time, logged and, where it is large, said."""

import os
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only

from mtl_lightning.data.loader import ResumableLoader


class DataSpeed(Callback):
    """Logs ``data/samples_per_second`` (of all processes) and ``data/wait`` (share of the training time spent waiting for data).

    Validation does not count, nor does the first batch of a process, for which its workers start. Measured over whole epochs,
    as many as take ``seconds`` together, because the times of short ones say nothing. The loader itself measures, twice a
    batch; nothing is done per step.

    Args:
        share: of the time; where the loop waits longer, a line says so, once.
        seconds: of training at least before anything is logged.
    """

    def __init__(self, share: float = 0.25, seconds: float = 20.0) -> None:
        self.share, self.seconds = share, seconds
        self._told = False
        self._trained, self._waited, self._rows = 0.0, 0.0, 0
        self._start: float | None = None
        self._marks = (0.0, 0)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """The clock starts with the process's first batch."""
        if self._start is None and isinstance(loader := trainer.train_dataloader, ResumableLoader):
            self._start, self._marks = time.perf_counter(), (loader.waited, loader.rows)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training pauses."""
        if self._start is not None:
            self._trained += time.perf_counter() - self._start

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training goes on."""
        if self._start is not None:
            self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the epoch's times, and log them once there are enough."""
        if self._start is None:
            return
        now = time.perf_counter()
        loader: Any = trainer.train_dataloader
        self._trained += now - self._start
        waited, rows = self._marks
        self._waited, self._rows = self._waited + loader.waited - waited, self._rows + loader.rows - rows
        self._start, self._marks = now, (loader.waited, loader.rows)
        if self._trained < self.seconds:
            return
        speed, wait = self._rows * trainer.world_size / self._trained, self._waited / self._trained
        self._trained, self._waited, self._rows = 0.0, 0.0, 0
        record = {"data/samples_per_second": speed, "data/wait": wait, "epoch": trainer.current_epoch}
        for logger in trainer.loggers:
            logger.log_metrics(record, step=max(0, trainer.global_step - 1))
        if wait > self.share and not self._told:
            self._told = True
            self._tell(speed, wait, trainer.datamodule)  # type: ignore[attr-defined]

    @rank_zero_only
    def _tell(self, speed: float, wait: float, data: Any) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        advice = []
        if data.num_workers < cores:
            advice.append(f"raise data.init_args.num_workers ({data.num_workers}; {cores} cores)")
        if getattr(data, "cache", True) is None:
            advice.append("keep decoded pictures (data.init_args.cache)")
        advice.append("store pictures at the size they are used at" if data.image_size else "take cheaper transforms")
        print(f"data: {speed:.0f} samples/s, waited {100 * wait:.0f} % of the training time; {', or '.join(advice)}", flush=True)
