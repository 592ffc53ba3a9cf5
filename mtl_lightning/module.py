"""Ties model, tasks and weighting to Lightning. No mathematics of its own."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mtl_lightning.architectures import Architecture, HardSharing
from mtl_lightning.bad_numbers import BadNumberMeter, BadNumbers, EvaluationFaults, Fault
from mtl_lightning.batch import Batch
from mtl_lightning.compiling import CompileOptions, check_compiler, compile_parts
from mtl_lightning.data.loader import Streams
from mtl_lightning.data.pictures import Unreadable
from mtl_lightning.data.prepare import Prepared
from mtl_lightning.data.text.prepare import PreparedText
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.freeze import Freeze, Freezer, anchor
from mtl_lightning.gradients import EngineOptions, GradientEngine
from mtl_lightning.hyperparameters import apply_changes, check_classes, snapshot
from mtl_lightning.metrics.evaluation import EpochLosses, Evaluation, TaskResult
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.monitor import check_monitor, check_tuned
from mtl_lightning.optimization import Optimization, parameter_groups
from mtl_lightning.penalties import Penalty, choose_penalties
from mtl_lightning.predictor import forward_each
from mtl_lightning.records import epoch_record, split_record, step_record
from mtl_lightning.resting import Resting
from mtl_lightning.restore import check_complete, check_state
from mtl_lightning.schedule import Scheduler, run_length
from mtl_lightning.sharding import clip_norm, shard
from mtl_lightning.strategies import check_sharded, check_strategy, check_wrapped, holds_all
from mtl_lightning.sums import add_up, gather
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.choice import choose_tasks
from mtl_lightning.training import Step, Surroundings, Training
from mtl_lightning.weighting import Equal, TaskInfo, Weighting


class MultiTaskModule(pl.LightningModule):
    """One network for many tasks, trained from partly labelled batches.

    Args:
        tasks: the tasks by name; the order is that of tables and weights.
        encoder: the backbone.
        optimizer: the optimizer's class and arguments without the parameters.
        architecture: how tasks share the encoder; None is hard sharing.
        weighting: how much each task counts; None is the plain sum.
        engine: how weightings look at the tasks' gradients.
        scheduler: learning-rate schedule; None keeps the rate.
        only: train these of the configured tasks and leave the others out.
        inputs: which of several inputs of the data a task reads; not needed where there is one.
        encoder_lr: multiplies the learning rate of the encoder, of all copies that the architecture makes of it.
        architecture_lr: multiplies the learning rate of what the architecture adds: gates, stitches, adapters.
        heads_lr: multiplies the learning rate of the heads.
        freeze: stages of the encoder that do not learn, for some epochs or for the whole run.
        penalties: added to the objective behind the weighting.
        channels_last: keep pictures and convolutions in ``torch.channels_last``, see
            :class:`~mtl_lightning.model.MultiTaskModel`.
        compile: compile the network for training; null runs it as it is.
        bad_numbers: what to do about images, labels, losses and gradients that are not finite.
    """

    def __init__(
        self,
        tasks: dict[str, Task],
        encoder: Encoder,
        optimizer: OptimizerCallable,
        architecture: Callable[[Encoder, Sequence[str]], Architecture] | None = None,
        weighting: Weighting | None = None,
        engine: EngineOptions | None = None,
        scheduler: Scheduler | None = None,
        only: list[str] | None = None,
        inputs: dict[str, str] | None = None,
        encoder_lr: float = 1.0,
        architecture_lr: float = 1.0,
        heads_lr: float = 1.0,
        freeze: Freeze | None = None,
        penalties: list[Penalty] | None = None,
        channels_last: bool = False,
        compile: CompileOptions | None = None,
        bad_numbers: BadNumbers | None = None,
    ) -> None:
        super().__init__()
        self.configured = list(tasks)
        chosen = choose_tasks(tasks, only)
        for name, task in chosen.items():
            task.name = name
        self.tasks = nn.ModuleDict(chosen)
        self.weighting = weighting or Equal()
        self.model: MultiTaskModel | None = None
        self.results: dict[str, dict[str, TaskResult]] = {}
        self.latest: dict[str, float] = {}
        self._seed = torch.initial_seed() + 1
        self._encoder = [encoder]
        self._architecture = architecture or HardSharing
        self._channels_last, self._compile = channels_last, compile
        self._scheduler = scheduler
        self.inputs = inputs or {}
        rates = {"encoder": encoder_lr, "architecture": architecture_lr, "heads": heads_lr}
        self._optimization = Optimization(optimizer, scheduler.scheduler if scheduler is not None else None, rates)
        self._penalties = penalties or []
        self._engine = engine or EngineOptions()
        self._training: Training | None = None
        self.engine: GradientEngine | None = None
        self._present: set[int] = set()
        self._configured: dict[str, Any] = {}
        self._checkpoint: dict[str, Any] | None = None
        self._unread: dict[str, float] = {}
        self._resting: Resting | None = None
        self._freeze = freeze
        self._freezer: Freezer | None = None
        self._logged = -1
        self._news = False
        self._streams = Streams()
        self.bad = BadNumberMeter(bad_numbers or BadNumbers(), rank_zero_warn)
        self._bad_rows = EvaluationFaults(self.bad.options, rank_zero_warn)
        self._taken: Step | None = None
        self.halt: TrainingError | None = None
        """Set on all processes alike, it ends the run with this error once the optimizer's step is over and all is saved."""

    def configure_model(self) -> None:
        """Build the network: only now class names and vector sizes are known from the training labels."""
        if self.model is not None:
            return
        tasks: dict[str, Task] = dict(self.tasks.items())  # type: ignore[arg-type]
        # From a seed of its own: how much was drawn since the start depends on the data and the number of processes.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            architecture = self._architecture(self._encoder[0], list(tasks))
            self.model = MultiTaskModel(tasks, architecture, self.inputs, self._channels_last)
        self.model.architecture.check_tasks(self.configured)
        check_strategy(None if self._trainer is None else self._trainer.strategy)
        if not self._replicated:
            assert self._trainer is not None
            check_sharded(self._trainer, self.weighting, self._engine, self._penalties, self._compile, self._channels_last)
            shard(self.model, self._trainer.strategy.root_device)
        self._freezer = Freezer(self._freeze, self.model.architecture) if self._freeze is not None else None
        datamodule = getattr(self._trainer, "datamodule", None)
        if datamodule is not None:
            datamodule.check_encoder(self._encoder[0])
        counts = datamodule.counts().get("train", {}) if datamodule is not None else {}
        infos = [TaskInfo(n, t.weight, counts.get(n, (0, 0))[0], t.noise, t.auxiliary) for n, t in tasks.items()]
        self.weighting.prepare(infos, self.configured)
        penalties = choose_penalties(self._penalties, self.model, self.configured)
        self._resting = Resting(self.model, self.weighting, self._freezer)
        self._training = Training(self.model, tasks, self.weighting, penalties, self._engine, self._surroundings(self._resting))
        self.engine = self._training.engine
        self.train_losses = EpochLosses(tasks)
        self.evaluations = nn.ModuleDict({split: Evaluation(tasks) for split in ("val", "test")})
        # What is no part of the network is equal on all processes, and the weighting's state is as large as the network where
        # gradients are remembered: no need for DistributedDataParallel to send it in every forward pass.
        state = [name for name, _ in self.named_buffers() if not name.startswith("model.")]
        self._ddp_params_and_buffers_to_ignore = state
        if all(task.auxiliary for task in tasks.values()):
            raise ConfigError("every task is auxiliary; at least one must be a main task (auxiliary: false)")
        if self._compile is not None and self._trainer is not None and self._trainer.state.fn == "fit":
            check_compiler(self._compile, self._trainer.strategy.root_device)
            compile_parts(self.model, self._compile)
            rank_zero_info(
                "model.compile: each part is compiled when it first trains and is first evaluated, which takes minutes"
            )

    @property
    def frozen_for_good(self) -> list[nn.Parameter]:
        """Parameters that the configuration keeps from learning in the whole run."""
        return [] if self._resting is None else self._resting.for_good

    @property
    def _replicated(self) -> bool:
        return self._trainer is None or holds_all(self._trainer.strategy)

    def _surroundings(self, resting: Resting) -> Surroundings:
        trainer = self._trainer
        return Surroundings(
            reduce=self._sum,
            world=1 if trainer is None else trainer.world_size,
            rank=0 if trainer is None else trainer.global_rank,
            report=rank_zero_warn,
            frozen=resting.still,
            context=lambda: self.trainer.precision_plugin.train_step_context(),
            lr=lambda: float(self.trainer.optimizers[0].param_groups[0]["lr"]),
            scale=lambda: float(self._scaler.get_scale()) if self._scaled else 1.0,
            further=self._further,
            gather=self._gather,
            replicated=self._replicated,
        )

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        padding: Tensor | None = None,
        rows: Mapping[str, Tensor] | None = None,
        tasks: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Raw predictions, see :class:`~mtl_lightning.model.MultiTaskModel`."""
        if self.model is None:
            self.configure_model()
        assert self.model is not None
        predictions: dict[str, Tensor] = self.model(inputs, padding, rows, tasks)
        return predictions

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The first batch of an epoch starts new means and thaws (a resumed run may never see the epoch start)."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._end_if_asked()
        if batch_idx == 0:
            self.train_losses.reset()
            if self.engine is not None:
                self.engine.balance.meter.reset()
        if self._freezer is not None and (change := self._freezer.update(self.current_epoch)):
            rank_zero_info(change)
        assert self.model is not None
        if change := self.model.architecture.set_epoch(self.current_epoch):
            rank_zero_info(change)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective: weighted losses of the labelled elements of the global batch."""
        assert self._training is not None
        adds_up = (batch_idx + 1) % self.trainer.accumulate_grad_batches and not self.trainer.is_last_batch
        self._training.prepare(batch, steps=not adds_up)
        objective = self._training.objective(batch)
        losses = self._training.step.losses
        self.train_losses.add(losses.terms, losses.rows)
        if self.trainer.world_size > 1 and self._replicated:
            assert self._resting is not None
            objective = anchor(objective, self._resting.still())
        self._present = set(losses.places)
        return objective

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Fill ``.grad``."""
        assert self._training is not None
        self._taken = self._training.backward(loss, self._scaled)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Methods that look at a batch again after the optimizer's step do so, before anything is saved."""
        scale, number = float(self._scaler.get_scale()) if self._scaled else 1.0, self.global_step
        step = f"step {number} of epoch {self.current_epoch}"
        super().optimizer_step(*args, **kwargs)
        if self._training is None:
            return
        # A scale that was lowered, or can be lowered no more, tells that the scaler skipped the step.
        skipped = self._scaled and not 0 < scale <= float(self._scaler.get_scale())
        self._notice(self._training.overflowed() if self.bad.search(skipped) else [], step, steps=True)
        if (self._news or number == self._logged) and (record := self.bad.record()):
            self._send(record, number)
        self._news = False
        self._training.finish()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """As the trainer does it; norms of gradients in parts are those of whole ones."""
        if self._replicated or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_norm(list(self.parameters()), float(gradient_clip_val), self._sum)

    def _notice(self, faults: Sequence[Fault], step: str, steps: bool = False) -> None:
        self.halt = self.bad.add(faults, step, steps) or self.halt
        self._news = self._news or bool(faults)

    def _gather(self, faults: list[Fault]) -> list[Fault]:
        return [fault for found in gather(faults, self.trainer.world_size) for fault in found]

    def _end_if_asked(self) -> None:
        # Where LastCheckpoint is among the callbacks it has done so before, with all saved.
        if self.halt is not None:
            raise self.halt

    def _further(self, number: int) -> Batch:
        opened = getattr(getattr(self.trainer, "datamodule", None), "further_batches", None)
        if opened is None:
            raise ConfigError(
                f"model.weighting {type(self.weighting).__name__} draws further batches of the training split, which a data "
                "module of mtl_lightning gives; fit with one, or take another weighting"
            )
        batch: Batch = self.transfer_batch_to_device(self._streams.next(number, opened), self.device, 0)
        return batch

    @property
    def _scaler(self) -> Any:
        return getattr(self.trainer.precision_plugin, "scaler", None)

    @property
    def _scaled(self) -> bool:
        return self._scaler is not None

    @property
    def _importance(self) -> dict[str, float]:
        assert self._training is not None
        return self._training.importance

    def _sum(self, tensor: Tensor) -> Tensor:
        return add_up(self.trainer.strategy, tensor)

    def on_before_backward(self, loss: Tensor) -> None:
        """Note what rests in this step."""
        # Not in training_step: Lightning takes the last step's gradients away only after it.
        assert self._resting is not None
        if self._scaled and not self._present:
            # A loss scaler refuses a step in which nothing has a gradient: there the gradients stay, and are 0.
            self._resting.forget()
        else:
            self._resting.note(self._present)

    def on_after_backward(self) -> None:
        """Take the gradients of what rests away, and those that are not finite."""
        assert self._resting is not None and self._training is not None and self._taken is not None
        self._resting.drop()
        faults = self._training.settle(self._scaled)
        self._notice(faults, f"step {self.global_step} of epoch {self.current_epoch}")
        self._log_step(self._taken)
        if self._scaled and not self._present and all(parameter.grad is None for parameter in self.parameters()):
            still = set(self._resting.still())
            first = next(parameter for parameter in self.parameters() if parameter not in still)
            first.grad = torch.zeros_like(first)

    def _log_step(self, taken: Step) -> None:
        step, every = self.global_step, max(1, self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if (step and (step + 1) % every) or step == self._logged:
            return
        self._logged = step
        taken = taken._replace(penalties=self._everywhere(taken.penalties))
        record = step_record(taken, self._importance, self.latest, self.weighting, self.engine)
        for group in self.trainer.optimizers[0].param_groups:
            record[f"lr/{group['name']}"] = float(group["lr"])
        self._send(record, step)

    def _everywhere(self, penalties: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # A penalty on activations is of each process's own rows; what learns is the mean.
        if self.trainer.world_size == 1 or not penalties:
            return dict(penalties)
        means = self._sum(torch.stack([value.detach() for value in penalties.values()])) / self.trainer.world_size
        return dict(zip(penalties, means.unbind(), strict=True))

    def _send(self, record: Mapping[str, float], step: int) -> None:
        # Straight to the loggers: Lightning's own log costs 0.35 ms a value and step, and it writes an epoch's means only after
        # the checkpoint of that epoch, so that a kill between the two would lose them.
        for logger in self.loggers:
            logger.log_metrics({**record, "epoch": self.current_epoch}, step=step)

    def _report(self, record: Mapping[str, float]) -> None:
        """Log an epoch's values, and let schedules and checkpoints monitor them."""
        if self.trainer.state.fn == "fit":
            self._send(record, max(0, self.global_step - 1))
        self._unread.update(record)
        for key, value in record.items():
            self.log(key, value, logger=False, prog_bar=key == "val/score")

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean losses and hand them to the weighting; an epoch that max_steps cut short has none."""
        if not self.trainer.is_last_batch:
            return
        losses, rows = self.train_losses.compute()
        weighted = losses * losses.new_tensor(list(self._importance.values()))
        self._report(epoch_record(self._importance, losses, weighted, rows, self.engine))
        self.weighting.epoch_end(weighted, rows > 0)
        self._step_plateau()

    def _step_plateau(self) -> None:
        # Here, because Lightning does it only after the epoch's checkpoint, and not at all for a run that goes on from there.
        # A value counts once: where nothing was validated since the last step there is nothing to look at.
        for config in self.trainer.lr_scheduler_configs:
            due = config.reduce_on_plateau and config.interval == "epoch" and (self.current_epoch + 1) % config.frequency == 0
            if due and (value := self._unread.pop(str(config.monitor), None)) is not None:
                config.scheduler.step(value)  # type: ignore[arg-type]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning's step of a schedule; a plateau's has been done by then."""
        if not (isinstance(scheduler, ReduceLROnPlateau) and self._scheduler and self._scheduler.interval == "epoch"):
            super().lr_scheduler_step(scheduler, metric)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Losses and metrics; returns the predictions for callbacks."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Losses and metrics; returns the predictions for callbacks."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Sequence[Prepared | PreparedText | Unreadable], batch_idx: int) -> list[dict[str, Tensor]]:
        """Raw predictions of each picture or text that can be read."""
        return forward_each(self, [item for item in batch if not isinstance(item, Unreadable)], self.device, self.inputs)

    def _evaluate(self, split: str, batch: Batch) -> dict[str, Tensor]:
        predictions: dict[str, Tensor] = self(batch.inputs, batch.padding, batch.given)
        evaluation: Evaluation = self.evaluations[split]  # type: ignore[assignment]
        assert self._training is not None
        evaluation.update(predictions, self._training.masked_losses(predictions, batch), batch)
        self._bad_rows.add(split, batch.bad)
        return predictions

    def _finish(self, split: str) -> None:
        evaluation: Evaluation = self.evaluations[split]  # type: ignore[assignment]
        results = evaluation.compute(tune=split == "val" and not self.trainer.sanity_checking)
        evaluation.reset()
        self.results[split] = results
        faults = self._bad_rows.count(split)
        if self.trainer.world_size > 1:
            faults = int(self._sum(torch.tensor(float(faults), device=self.device)))
        found = self._gather(self._bad_rows.take(split)) if faults else []
        if self.trainer.sanity_checking:
            return
        record, error = self._bad_rows.finish(split, found)
        self._report(split_record(split, results, self._importance) | record)
        if error is not None:
            self.halt = self.halt or error
            if self.trainer.state.fn != "fit":
                raise error

    def on_validation_epoch_end(self) -> None:
        """Compute, log and keep the results."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Compute, log and keep the results."""
        self._finish("test")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other tasks, classes or shapes before anything is loaded."""
        training = self.trainer.state.fn == "fit"
        if training:
            check_complete(checkpoint, self.trainer.ckpt_path)
        if isinstance(self.trainer.precision_plugin, DoublePrecision):
            # The trainer does so after loading, when float64 weights have been rounded to float32.
            self.double()
        check_state(self, checkpoint["state_dict"], training, checkpoint.get("mtl_config"))
        if self.trainer.state.fn in ("test", "predict"):
            check_tuned(self.tasks)
        self._checkpoint = checkpoint.get("mtl_hyperparameters") if training else None
        if (learnt := checkpoint.get("mtl_preparation")) and (datamodule := getattr(self.trainer, "datamodule", None)):
            datamodule.restore_preparation(learnt)
        self._unread = dict(checkpoint.get("mtl_unread", {})) if training else {}
        self.latest = dict(checkpoint.get("mtl_latest", {})) if training else {}
        self._streams = Streams(checkpoint.get("mtl_further", {}) if training else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how optimizer and schedule were configured, what was last seen and logged, further batches, the tokeniser."""
        checkpoint["mtl_hyperparameters"] = self._configured
        checkpoint["mtl_unread"] = dict(self._unread)
        checkpoint["mtl_latest"] = dict(self.latest)
        checkpoint["mtl_further"] = self._streams.state_dict()
        if (datamodule := getattr(self.trainer, "datamodule", None)) is not None:
            checkpoint["mtl_preparation"] = datamodule.preparation_state()

    def on_train_start(self) -> None:
        """Values of optimizer and schedule that were changed for a resumed run hold."""
        assert self.model is not None
        check_wrapped(self.trainer.model)
        self.halt = None
        epochs = self.trainer.max_epochs
        if warning := self.model.architecture.foresee(epochs if epochs is not None and epochs >= 0 else None):
            rank_zero_warn(warning)
        if self._checkpoint is not None:
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            optimizer, scheduler = self.trainer.optimizers[0], schedulers[0] if schedulers else None
            twin = partial(self._optimization.twin, self._groups(), self.weighting.lr, self._length)
            apply_changes(self._checkpoint, self._configured, optimizer, scheduler, twin)
            self._checkpoint = None

    def on_train_end(self) -> None:
        """End with the error that was to end the run, if it is over anyway."""
        self._end_if_asked()

    def configure_optimizers(self) -> Any:
        """Parameter groups encoder, heads and weighting, with their learning-rate multipliers, and the schedule."""
        optimizer, scheduler = self._optimization.build(self._groups(), self.weighting.lr, self._length)
        self._configured = snapshot(optimizer, scheduler)
        if self._checkpoint is not None:
            check_classes(self._checkpoint, self._configured)
        if scheduler is None or self._scheduler is None:
            return optimizer
        settings: dict[str, Any] = {"interval": self._scheduler.interval, "frequency": self._scheduler.frequency}
        if isinstance(scheduler, ReduceLROnPlateau) or self._scheduler.monitor is not None:
            monitor = self._scheduler.monitor or getattr(scheduler, "monitor", None)
            if monitor is None:
                raise ConfigError("model.scheduler.monitor is not set: ReduceLROnPlateau needs a value to follow, e.g. val/loss")
            counts = self.trainer.datamodule.counts().get("val", {})  # type: ignore[attr-defined]
            check_monitor("model.scheduler.monitor", monitor, self, counts)
            settings |= {"monitor": monitor, "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler} | settings}

    def _groups(self) -> list[dict[str, Any]]:
        assert self.model is not None
        return parameter_groups(self.model, self.weighting)

    def _length(self) -> int:
        assert self._scheduler is not None
        return run_length(self.trainer, self._scheduler)
