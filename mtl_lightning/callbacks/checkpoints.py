"""Checkpoints that are whole, at moments a run can go on from."""

import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only

from mtl_lightning.callbacks.agreement import Agreement
from mtl_lightning.callbacks.requeue import never_requeue, requeue, requeue_signal
from mtl_lightning.callbacks.signals import SAVED, Stopped, StopRequest
from mtl_lightning.runs import LAST


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
    """``last.ckpt``: after every epoch, in mid-epoch every so many steps or minutes, and where a signal ends the run.

    Where a validation is due at the same batch it is saved after it, so that no validation is lost between the two.

    Args:
        folder: where.
        every_n_steps: optimizer steps between saves within an epoch.
        every_minutes: minutes between saves within an epoch.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None, every_minutes: float | None = None) -> None:
        self.path = Path(folder) / LAST
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self._step = 0
        self._clock = time.monotonic()
        self._pending = False
        self._stepped = self._held = False
        self._stop = StopRequest()
        self._asked = self._again = 0
        self._requeue: int | None = None
        self._agreement: Agreement | None = None

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self._step, self._clock, self._pending = trainer.global_step, time.monotonic(), False

    def _numbers(self) -> list[int]:
        """What this process asks for: an end by a signal, a requeue, a save by the clock."""
        late = self.every_minutes is not None and time.monotonic() - self._clock >= 60 * self.every_minutes
        return [self._stop.asked, int(self._stop.asked == self._requeue), int(late)]

    def _agree(self) -> bool:
        """Learn what any process asks for; whether a save is due by the clock."""
        assert self._agreement is not None
        self._asked, self._again, late = self._agreement.answer()
        return bool(late)

    def _listen(self, trainer: pl.Trainer, answer: str = "the run ends as soon as it is saved") -> None:
        # Not sooner: Lightning sets its own handlers as a stage begins, and these send messages at any moment of a step.
        if trainer.state.fn == "fit":
            self._requeue = requeue_signal(trainer)
        self._stop.answer = answer
        self._stop.quiet = not trainer.is_global_zero
        self._stop.listen(signal.SIGINT, signal.SIGTERM, *([] if self._requeue is None else [self._requeue]))

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to signals; the first step then ends the run."""
        self._listen(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here, listen to signals, and take away what a kill in the middle of a save left."""
        self._listen(trainer)
        self._step, self._clock = trainer.global_step, time.monotonic()
        self._agreement = Agreement(self._numbers, trainer.strategy.root_device, trainer.world_size)
        if trainer.is_global_zero:
            for left in self.path.parent.glob("*.ckpt.tmp"):
                left.unlink(missing_ok=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the training, too: a report that was begun is finished."""
        if trainer.state.fn == "validate":
            self._listen(trainer, "all is saved, and the report is finished first")

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """The report has no time to be finished where SLURM is about to end the job: the next start writes it."""
        if trainer.state.fn == "validate" and self._stop.asked and self._stop.asked == self._requeue:
            if trainer.is_global_zero:
                print(requeue(), flush=True)
            raise Stopped(SAVED)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no longer."""
        self._stop.leave()
        never_requeue(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self._stop.leave()

    def _finish(self, trainer: pl.Trainer) -> None:
        """Save where a signal ends the run."""
        self._save(trainer)
        saved = not trainer.fast_dev_run  # type: ignore[attr-defined]
        how = f"saved {self.path}; --ckpt_path last goes on from there." if saved else "and a fast_dev_run saves nothing."
        say = rank_zero_only(print)
        say(f"Stopped after step {trainer.global_step}, {how}", flush=True)
        if self._again and trainer.is_global_zero:
            say(requeue(), flush=True)
        # A process that leaves sooner would take what the launcher started with it.
        trainer.strategy.barrier()
        raise Stopped(SAVED if saved and self._asked != signal.SIGINT else 128 + self._asked)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask the other processes; their answer comes while the step is computed."""
        assert self._agreement is not None
        self._agreement.ask()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save in mid-epoch, and where the run ends; only between optimizer steps: accumulated gradients are in no checkpoint."""
        late = self._agree()
        self._stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._hold(trainer)
        if trainer.is_last_batch or not self._stepped:
            return
        due = validation_due(trainer, batch_idx)
        if not due:
            self._halt(trainer, pl_module)
        many = self.every_n_steps is not None and trainer.global_step - self._step >= self.every_n_steps
        if not (self._asked or self._ends(trainer) or many or late):
            return
        if due:
            self._pending = True
        else:
            self._save_or_finish(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what was due at the batch before the validation, or where the validation ends the run in mid-epoch."""
        if trainer.state.fn != "fit":
            # The report is written: other callbacks come before those that save.
            self._stop.leave()
            self.on_validation_batch_end(trainer)
            return
        if trainer.sanity_checking:
            return
        self._hold(trainer)
        between = self._stepped and not trainer.is_last_batch
        if between:
            self._halt(trainer, pl_module)
        if self._pending or (between and self._ends(trainer)):
            self._save_or_finish(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after every whole epoch: here, the trainer's counters call one that was cut short a whole one, too."""
        if not trainer.is_last_batch:
            return
        assert self._agreement is not None
        self._agreement.ask()
        self._agree()
        self._halt(trainer, pl_module)
        self._save_or_finish(trainer)

    def _hold(self, trainer: pl.Trainer) -> None:
        """Let what stops the run wait for the end of the optimizer's step, where it can be saved."""
        if self._stepped or trainer.is_last_batch:
            trainer.should_stop, self._held = trainer.should_stop or self._held, False
        elif trainer.should_stop:
            trainer.should_stop, self._held = False, True

    def _save_or_finish(self, trainer: pl.Trainer) -> None:
        if self._asked:
            self._finish(trainer)
        else:
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
