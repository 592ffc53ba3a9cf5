"""Gates, stitches, learnt branches and attention: logged after each validation, drawn at the end."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only

from mtl_lightning.analysis.attention_pictures import Look, attention_picture
from mtl_lightning.analysis.flops import undisturbed
from mtl_lightning.analysis.sharing_pictures import record, sharing_picture
from mtl_lightning.architectures.base import Architecture, Table
from mtl_lightning.architectures.seen import Seen, gather, unseen
from mtl_lightning.batch import Batch
from mtl_lightning.callbacks.report import spread
from mtl_lightning.features import Features
from mtl_lightning.storage import writing
from mtl_lightning.sums import add_up

THEN = "the checkpoints are whole: make room or permit writing, then run validate or test"
SHOWN = 4
"""Samples in the picture of attention, spread over the split."""
SUFFIX = {"validate": "", "test": "_test"}


class WatchSharing(Callback):
    """Logs ``sharing/{table}/{row}/{column}`` after each validation of a ``fit``; draws ``sharing.png`` and ``attention.png``.

    Tables that depend on the input are means over the rows of the split, of all processes. The pictures are drawn after
    ``validate`` (with which ``fit`` ends) and, as ``sharing_test.png`` and ``attention_test.png``, after ``test``. An
    architecture without tables or attention leaves nothing behind.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._looks: list[Look] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch the gates."""
        if not trainer.sanity_checking:
            self._looks = []
            _architecture(pl_module).watch(True)

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        """Keep where tasks look, in the last validation."""
        if trainer.state.fn == "validate":
            self._look(pl_module, batch, batch_idx, int(trainer.num_val_batches[0]))

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        """Keep where tasks look."""
        self._look(pl_module, batch, batch_idx, int(trainer.num_test_batches[0]))

    @rank_zero_only
    def _look(self, module: Any, batch: Batch, batch_idx: int, batches: int) -> None:
        model = module.model
        # Its gates have seen these rows.
        with unseen(model):
            for row in spread(SHOWN, batches, batch_idx, len(batch)):
                for read, tasks in model.read_by(batch.inputs).items():
                    if read in batch.given and not bool(batch.given[read][row]):
                        continue
                    look = _take(model, batch, row, read, tasks)
                    if look is not None:
                        self._looks.append(look)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log, before anything is saved: a run that goes on from a checkpoint has all rows up to it."""
        if trainer.sanity_checking:
            return
        architecture = _architecture(pl_module)
        architecture.watch(False)

        if trainer.world_size > 1:
            gather(_seen(architecture), partial(add_up, trainer.strategy), pl_module.device)
        tables = architecture.tables()
        if trainer.state.fn == "fit":
            values = record(tables)
            for logger in trainer.loggers if values else []:
                logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=max(0, trainer.global_step - 1))
        else:
            self._draw(tables, SUFFIX[str(trainer.state.fn.value)])  # type: ignore[union-attr]

    on_test_epoch_end = on_validation_epoch_end

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where nothing is validated, what depends on no input can still be drawn."""
        if not trainer.enable_validation and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._draw(_architecture(pl_module).tables(), "")

    @rank_zero_only
    def _draw(self, tables: dict[str, Table], suffix: str) -> None:
        with writing(self.folder, THEN):
            if tables:
                self.folder.mkdir(parents=True, exist_ok=True)
                sharing_picture(tables, self.folder / "metrics.csv", self.folder / f"sharing{suffix}.png")
            if self._looks:
                self.folder.mkdir(parents=True, exist_ok=True)
                attention_picture(self._looks, self.folder / f"attention{suffix}.png")


def _architecture(module: Any) -> Architecture:
    architecture: Architecture = module.model.architecture
    return architecture


def _seen(architecture: Architecture) -> list[Seen]:
    return [module for module in architecture.modules() if isinstance(module, Seen)]


def _take(model: Any, batch: Batch, row: int, read: str, tasks: list[str]) -> Look | None:
    """One row's attention; None where there is none."""
    tensor = batch.inputs[read][row : row + 1]
    padding = None if batch.padding is None else batch.padding[row : row + 1]
    valid = None if padding is None or tensor.ndim < 4 else (~padding).unsqueeze(1).to(tensor.dtype)
    with undisturbed(model), torch.autocast(tensor.device.type, enabled=False):
        like = next(model.parameters())
        source = Features(tensor.to(like.dtype) if tensor.is_floating_point() else tensor, valid)
        found = model.architecture.attention(source)
    maps = {task: [one[0, 0].float().cpu() for one in found[task]] for task in tasks if found.get(task)}
    if not maps:
        return None
    name = batch.ids[row] if len(batch.inputs) == 1 else f"{batch.ids[row]}, {read}"
    if tensor.ndim == 4:
        return Look(name, tensor[0].float().cpu(), maps, batch.extent(row))
    length = max(1, int((tensor[0] != 0).sum()))
    return Look(name, None, maps, (1, length), batch.texts[row] if batch.texts else "")
