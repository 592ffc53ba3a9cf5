"""What a run leaves behind: a table in the terminal, summary.json, summary.md and pictures in the run folder."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from mtl_lightning.analysis.balancing import balancing
from mtl_lightning.analysis.pictures import Row, curves, plot, samples, take_row
from mtl_lightning.analysis.tables import Summary, caption, markdown_table, rich_table, summarize
from mtl_lightning.callbacks.metrics_csv import last_values
from mtl_lightning.storage import read_json, replace_text, writing
from mtl_lightning.tasks.base import Task

TITLES = {"val": "validation", "test": "test"}
THEN = "the checkpoints are whole: make room or permit writing, then run validate or test"
SHOWN = 6
"""Samples in the picture of predictions, spread over the split."""


class Report(Callback):
    """Writes tables and pictures after ``validate`` and ``test`` (``fit`` ends with a ``validate`` of its best checkpoint).

    Args:
        folder: the run folder.
        checkpoint: what is evaluated, for the heading.
    """

    def __init__(self, folder: Path, checkpoint: str = "") -> None:
        self.folder = Path(folder)
        self.checkpoint = checkpoint
        self._rows: list[Row] = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the samples for the picture."""
        if trainer.state.fn == "validate":
            self._keep(pl_module, outputs, batch, batch_idx, int(trainer.num_val_batches[0]))

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the samples for the picture."""
        self._keep(pl_module, outputs, batch, batch_idx, int(trainer.num_test_batches[0]))

    @rank_zero_only
    def _keep(self, module: Any, predictions: Any, batch: Any, batch_idx: int, batches: int) -> None:
        if batch_idx == 0:
            self._rows = []
        for row in spread(SHOWN, batches, batch_idx, len(batch)):
            self._rows.append(take_row(batch, predictions, dict(module.tasks.items()), row, module.inputs))

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After ``validate`` only, not within ``fit``."""
        if trainer.state.fn == "validate":
            self.write("val", pl_module)

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After ``test``."""
        self.write("test", pl_module)

    def write(self, split: str, module: Any) -> None:
        """Everything about one split; raises :class:`~mtl_lightning.errors.StorageError` where it cannot be written."""
        with writing(self.folder, THEN):
            self._write(split, module)

    def _write(self, split: str, module: Any) -> None:
        results, tasks = module.results[split], dict(module.tasks.items())
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "summary.json"
        summary = read_json(file)
        summary[split] = {"checkpoint": self.checkpoint} | summarize(results)
        console = Console()
        console.print(rich_table(f"{self.folder.name}: {TITLES[split]} of {self.checkpoint}", summary[split]))
        console.print(caption(summary[split]), highlight=False)
        replace_text(file, json.dumps(summary, indent=2) + "\n", THEN)
        self._pictures(split, module, tasks)
        replace_text(self.folder / "summary.md", self._page(summary), THEN)

    def without_validation(self, module: Any) -> None:
        """The report of a run that validated nothing: the last training losses, and the curves."""
        file = self.folder / "summary.json"
        summary = read_json(file)
        # Not the trainer's: a run that had come to its end already, and was killed before its report, has trained no epoch now.
        losses = summary["train"] = last_values(self.folder / "metrics.csv", "train/")
        replace_text(file, json.dumps(summary, indent=2) + "\n")
        self._training_pictures(dict(module.tasks.items()))
        lines = ["Nothing was validated. The last epoch's training losses:", ""]
        lines += [f"- {key}: {value:.4g}" for key, value in losses.items() if key.endswith("/loss")]
        page = "\n\n".join([f"# {self.folder.name}", "\n".join(lines), *self._links()])
        replace_text(self.folder / "summary.md", page + "\n")

    def _page(self, summary: dict[str, Summary]) -> str:
        parts = [f"# {self.folder.name}"]
        for split, part in summary.items():
            if split not in TITLES:
                continue
            parts.append(f"## {TITLES[split].capitalize()} of {part['checkpoint']}\n\n{markdown_table(part)}")
        if "model" in summary:
            parts.append("What the network consists of and costs: [model.md](model.md).")
        return "\n\n".join([*parts, *self._links()]) + "\n"

    def _links(self) -> list[str]:
        return [f"![{path.stem}]({path.name})" for path in sorted(self.folder.glob("*.png"))]

    def _pictures(self, split: str, module: Any, tasks: dict[str, Task]) -> None:
        if self._rows:
            samples(self._rows, tasks, self.folder / f"predictions_{split}.png")
        for name, result in module.results[split].items():
            values = {key: torch.tensor(value) for key, value in result.values.items()} | result.tensors
            for picture, draw in tasks[name].plots(values).items():
                plot(draw, name, picture, self.folder / f"{name}_{picture}_{split}.png")
        self._training_pictures(tasks)

    def _training_pictures(self, tasks: dict[str, Task]) -> None:
        metrics = self.folder / "metrics.csv"
        if metrics.exists():
            curves(metrics, tasks, self.folder / "curves.png")
            balancing(metrics, list(tasks), self.folder)


def spread(number: int, batches: int, batch_idx: int, rows: int) -> list[int]:
    """Which rows of a batch to show, so that the shown ones come from all over the split.

    Args:
        number: of samples in all.
        batches: of the split.
        batch_idx: this batch.
        rows: in this batch.
    """
    places = ((position + 0.5) * batches / number for position in range(number))
    return [int((place - batch_idx) * rows) for place in places if int(place) == batch_idx]
