"""What a resumed run needs beside weights: random streams, the configuration it was trained with, the metrics so far."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info

from mtl_lightning.callbacks.carried import carry_over, stays_stopped
from mtl_lightning.callbacks.generators import Generators, generators, reseed, restore
from mtl_lightning.callbacks.metrics_csv import MetricsCSV
from mtl_lightning.sums import gather

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
        self._states: list[Generators] | None = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add generators, configuration, and whether something (early stopping, say) has ended the run."""
        checkpoint["mtl_config"] = self.config
        checkpoint["mtl_stopping"] = bool(trainer.should_stop)
        checkpoint["mtl_random"] = gather(generators(), trainer.world_size)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Print what differs, in fit."""
        if trainer.state.fn != "fit":
            return
        states = checkpoint.get("mtl_random")
        # Of before there could be several processes: one's own.
        self._states = [states] if isinstance(states, dict) else states
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
            rank_zero_info(f"The run goes on behind step {trainer.global_step}, in epoch {trainer.current_epoch + 1}")
        states, self._states = self._states, None
        if states is not None and len(states) == trainer.world_size:
            restore(states[trainer.global_rank])
            return
        if states is not None:
            rank_zero_info(
                f"The checkpoint is of {_processes(len(states))}, and this run has {_processes(trainer.world_size)}: dropout and "
                "stochastic depth draw from new streams (the order of the rows and augmentation stay)"
            )
        if states is not None or trainer.world_size > 1:
            # The trainer seeds all processes alike, and dropout would take the same from each one's rows.
            reseed((states or [generators()])[0], trainer.global_rank)


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _begin_next_epoch(loops: dict[str, Any]) -> None:
    """Let a checkpoint of an epoch's end start the next one, at its first row.

    With ``max_steps`` the trainer would otherwise begin the finished epoch again, find nothing left in it, and end it twice. And
    with ``limit_train_batches`` loaders do not know that the epoch is over.
    """
    epoch, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    over = epoch["current"]["started"] == epoch["current"]["processed"]
    # A loader of a user's own may keep what it likes.
    for loader in (state for state in loops["state_dict"].get("combined_loader", []) if "rows" in state):
        if (over or batches["is_last_batch"]) and loader["rows"]:
            loader |= {"epoch": loader["epoch"] + 1, "rows": 0}
        # Of before loaders told it.
        loader.setdefault("batch", loader["rows"] // max(1, batches["current"]["ready"]))
    if not over:
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
