"""What the network consists of, told before training: a table, ``model.md`` and ``model.png``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from mtl_lightning.analysis.model_summary import ModelSummary
from mtl_lightning.analysis.model_tables import model_page, show_network
from mtl_lightning.analysis.network import summary_of, write_network
from mtl_lightning.storage import read_json, replace_text, writing

THEN = "make room or set runs to another folder, and run again"


class NetworkPage(Callback):
    """Prints the network in numbers as ``fit`` starts, and writes ``model.md``, ``model.png`` and ``model`` of ``summary.json``.

    The picture is drawn once more at the end where training has changed who shares what.

    Args:
        folder: the run folder.
        show: whether the table is printed.
    """

    def __init__(self, folder: Path, show: bool = True) -> None:
        self.folder, self.show = Path(folder), show
        self._drawn: int | None = None

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count, tell and draw."""
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            # One process alone cannot run a network of which it has a part.
            rank_zero_info("The network is in parts on several processes: model.md and model.png are left out.")
            return
        row = trainer.datamodule.first_row().inputs  # type: ignore[attr-defined]
        summary = summary_of(pl_module, row)
        if self.show:
            show_network(summary, f"{self.folder.name}: the network")
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(summary, pl_module, row)

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """In the last validation, of the best checkpoint: look again if that shares in another way."""
        changed = self._drawn not in (None, pl_module.model.architecture.revision)  # type: ignore[union-attr]
        if trainer.state.fn == "validate" and changed:
            row = trainer.datamodule.first_row().inputs  # type: ignore[attr-defined]
            self._write(summary_of(pl_module, row), pl_module, row)

    def _write(self, summary: ModelSummary, module: Any, row: Mapping[str, Tensor]) -> None:
        with writing(self.folder, THEN):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_network(summary, module, row, self.folder)
        file = self.folder / "summary.json"
        replace_text(file, json.dumps(read_json(file) | {"model": summary.as_dict()}, indent=2) + "\n", THEN)
        replace_text(self.folder / "model.md", f"# {self.folder.name}\n\n{model_page(summary)}\n\n![model](model.png)\n", THEN)
        self._drawn = module.model.architecture.revision
