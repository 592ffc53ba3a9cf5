"""Ties model, tasks and weighting to Lightning. No mathematics of its own."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mtl_lightning.architectures import Architecture, HardSharing
from mtl_lightning.batch import Batch
from mtl_lightning.data.pictures import Unreadable
from mtl_lightning.data.prepare import Prepared
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.freeze import Freeze, Freezer
from mtl_lightning.hyperparameters import apply_changes, check_classes, snapshot
from mtl_lightning.metrics.evaluation import EpochLosses, Evaluation, StackedTerms, TaskResult, score, stack_terms
from mtl_lightning.mixing import masked_loss
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.monitor import check_monitor, check_tuned
from mtl_lightning.optimization import parameter_groups, scale_scheduled
from mtl_lightning.penalties import Penalty, choose_penalties, penalties_of
from mtl_lightning.predictor import forward_each
from mtl_lightning.restore import check_state
from mtl_lightning.schedule import Scheduler, run_length
from mtl_lightning.tasks.base import MaskedLoss, Task
from mtl_lightning.weighting import Equal, LossWeighting, TaskInfo

SPLITS = ("train", "val", "test")
RESERVED = {"image", "id", "size", "score", "loss", "delta_m", "epoch", "step", *SPLITS, *dir(nn.ModuleDict())}


class MultiTaskModule(pl.LightningModule):
    """One network for many tasks, trained from partly labelled batches.

    Args:
        tasks: the tasks by name; the order is that of tables and weights.
        encoder: the backbone.
        optimizer: the optimizer's class and arguments without the parameters.
        architecture: how tasks share the encoder; None is hard sharing.
        weighting: how much each task counts; None is the plain sum.
        scheduler: learning-rate schedule; None keeps the rate.
        only: train these of the configured tasks and leave the others out.
        encoder_lr: multiplies the learning rate of the architecture's parameters.
        heads_lr: multiplies the learning rate of the heads.
        freeze: stages of the encoder that do not learn, for some epochs or for the whole run.
        penalties: added to the objective behind the weighting.
    """

    def __init__(
        self,
        tasks: dict[str, Task],
        encoder: Encoder,
        optimizer: OptimizerCallable,
        architecture: Callable[[Encoder, Sequence[str]], Architecture] | None = None,
        weighting: LossWeighting | None = None,
        scheduler: Scheduler | None = None,
        only: list[str] | None = None,
        encoder_lr: float = 1.0,
        heads_lr: float = 1.0,
        freeze: Freeze | None = None,
        penalties: list[Penalty] | None = None,
    ) -> None:
        super().__init__()
        self.configured = list(tasks)
        chosen = _choose(tasks, only)
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
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._penalties = penalties or []
        self._multipliers = {"encoder": encoder_lr, "heads": heads_lr}
        for key, value in self._multipliers.items():
            if value < 0:
                raise ConfigError(f"model.{key}_lr is {value}, expected 0 or more")
        self._present: set[int] = set()
        self._configured: dict[str, Any] = {}
        self._checkpoint: dict[str, Any] | None = None
        self._unread: dict[str, float] = {}
        self._resting: list[nn.Parameter] = []
        self._freeze = freeze
        self._freezer: Freezer | None = None
        self._logged = -1

    def configure_model(self) -> None:
        """Build the network: only now class names and vector sizes are known from the training labels."""
        if self.model is not None:
            return
        tasks: dict[str, Task] = dict(self.tasks.items())  # type: ignore[arg-type]
        # From a seed of its own: how much was drawn since the start depends on the data and the number of processes.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self.model = MultiTaskModel(tasks, self._architecture(self._encoder[0], list(tasks)))
        self._freezer = Freezer(self._freeze, self.model.architecture) if self._freeze is not None else None
        self._penalties = choose_penalties(self._penalties, self.model, self.configured)
        datamodule = getattr(self._trainer, "datamodule", None)
        counts = datamodule.counts().get("train", {}) if datamodule is not None else {}
        self.weighting.setup([TaskInfo(n, t.weight, counts.get(n, (0, 0))[0], t.noise) for n, t in tasks.items()])
        self.train_losses = EpochLosses(tasks)
        self.evaluations = nn.ModuleDict({split: Evaluation(tasks) for split in SPLITS[1:]})
        if all(task.auxiliary for task in tasks.values()):
            raise ConfigError("every task is auxiliary; at least one must be a main task (auxiliary: false)")

    def forward(self, inputs: Mapping[str, Tensor], padding: Tensor | None = None) -> dict[str, Tensor]:
        """Raw predictions of every task, see :class:`~mtl_lightning.model.MultiTaskModel`."""
        if self.model is None:
            self.configure_model()
        assert self.model is not None
        predictions: dict[str, Tensor] = self.model(inputs, padding)
        return predictions

    def masked_losses(self, predictions: Mapping[str, Tensor], batch: Batch) -> dict[str, MaskedLoss]:
        """Each task's loss terms."""
        return {name: masked_loss(task, predictions[name], batch) for name, task in self.tasks.items()}  # type: ignore[arg-type]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The first batch of an epoch starts new means and thaws (a resumed run may never see the epoch start)."""
        if batch_idx == 0:
            self.train_losses.reset()
        if self._freezer is not None and (change := self._freezer.update(self.current_epoch)):
            rank_zero_info(change)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective: weighted losses of the labelled elements of the global batch."""
        masked = self.masked_losses(self(batch.inputs, batch.padding), batch)
        losses, values, present = self._normalize(masked, batch)
        names = list(self.tasks)
        weights = self.weighting(values[present], present) if len(present) else values.new_zeros(0)
        # Absent tasks and resting parameters stay in the graph with an exact 0: no unused parameter, no hang under DDP.
        objective = values.new_zeros(())
        for position in set(range(len(names))) - set(present.tolist()):
            objective = objective + losses[names[position]]
        for parameter in self.weighting.parameters():
            objective = objective + parameter.sum() * 0
        shown = weights.tolist()
        for index, position in enumerate(present.tolist()):
            loss = losses[names[position]]
            # One operation instead of three where the weight is a plain number: of a small network's step that is felt.
            if weights.requires_grad:
                objective = objective + weights[index] * loss
            else:
                objective = torch.add(objective, loss, alpha=shown[index])
        if len(present) and (penalty := self.weighting.penalty(present)) is not None:
            objective = objective + penalty
        assert self.model is not None
        penalties = penalties_of(self._penalties, self.model)
        for penalty in penalties.values():
            objective = objective + penalty
        if self._freezer is not None and self.trainer.world_size > 1:
            objective = self._freezer.anchor(objective)
        self._present = set(present.tolist())
        self._log_step(values, shown, present, penalties)
        return objective

    def _normalize(self, masked: Mapping[str, MaskedLoss], batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Each task's scalar loss, whose mean over ranks is the mean over the global batch's labelled elements.

        Returns:
            The losses with gradient, times the tasks' importance; their global values [T]; positions of the present tasks.
        """
        terms = stack_terms(masked)
        rows = torch.stack([batch.labelled[name].sum() for name in self.tasks]).to(terms.totals)
        if (world := self.trainer.world_size) > 1:
            reduce = self.trainer.strategy.reduce
            counted = reduce(torch.cat([terms.denominators, rows]), reduce_op="sum")
            terms = StackedTerms(reduce(terms.totals, reduce_op="sum"), counted[: -len(rows)], terms.coefficients)  # type: ignore[arg-type]
            rows = counted[-len(rows) :]
        self.train_losses.add(terms, rows)
        # One transfer from the device, and plain numbers from here on.
        totals, denominators = torch.stack([terms.totals, terms.denominators]).tolist()
        losses, values, present, index = {}, [], [], 0
        for position, (name, task) in enumerate(masked.items()):
            importance = float(self.tasks[name].weight)  # type: ignore[arg-type]
            parts, value, seen = [], 0.0, False
            for term in task.values():
                factor = 0.0
                if denominators[index] > 0:
                    factor = importance * term.coefficient / denominators[index]
                    value, seen = value + totals[index] * factor, True
                parts.append(term.total * (world * factor))
                index += 1
            losses[name] = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
            values.append(value)
            if seen:
                present.append(position)
        self._check_finite(dict(zip(losses, values, strict=True)), batch)
        device, dtype = terms.totals.device, terms.totals.dtype
        places = torch.tensor(present, dtype=torch.long, device=device)
        return losses, torch.tensor(values, dtype=dtype, device=device), places

    def _check_finite(self, values: Mapping[str, float], batch: Batch) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"the loss of task {', '.join(bad)} is not a finite number in step {self.global_step} of epoch "
                f"{self.current_epoch} (images {', '.join(batch.ids[:4])}, …); lower the learning rate, clip gradients with "
                "trainer.gradient_clip_val, or look at the labels of these images"
            )

    def on_before_backward(self, loss: Tensor) -> None:
        """Note the parameters that no present task uses, unless they have a gradient from the step's earlier micro-batches."""
        # Not in training_step: Lightning takes the last step's gradients away only after it.
        self._resting = []
        # A loss scaler refuses a step in which nothing has a gradient: there the gradients stay, and are 0.
        scaled = not self._present and getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled or len(self._present) == len(self.tasks):
            return
        assert self.model is not None
        present = {name for position, name in enumerate(self.tasks) if position in self._present}
        absent = [parameter for parameter, owners in self.model.owners().items() if not owners & present]
        absent += [parameter for parameter, task in self.weighting.owners().items() if task not in self._present]
        self._resting = [parameter for parameter in absent if parameter.grad is None]

    def on_after_backward(self) -> None:
        """No gradient rather than a zero one where no task was present: AdamW would move the weights all the same."""
        for parameter in self._resting:
            parameter.grad = None
        if self._freezer is not None:
            self._freezer.drop()

    def _log_step(self, values: Tensor, weights: list[float], present: Tensor, penalties: Mapping[str, Tensor]) -> None:
        step, every = self.global_step, max(1, self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if (step and (step + 1) % every) or step == self._logged:
            return
        self._logged = step
        names = list(self.tasks)
        importance = [float(task.weight) for task in self.tasks.values()]  # type: ignore[arg-type]
        shown = dict.fromkeys(names, 0.0)
        for position, weight in zip(present.tolist(), weights, strict=True):
            shown[names[position]] = weight * importance[position]
            self.latest[names[position]] = float(values[position]) / importance[position]
        record = {f"step/{name}/loss": self.latest[name] for name in names if name in self.latest}
        record |= {f"weight/{name}": weight for name, weight in shown.items()}
        record |= {f"penalty/{name}": float(value.detach()) for name, value in penalties.items()}
        for group in self.trainer.optimizers[0].param_groups:
            record[f"lr/{group['name']}"] = float(group["lr"])
        self._send(record, step)

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
        seen = rows > 0
        importance = losses.new_tensor([float(task.weight) for task in self.tasks.values()])  # type: ignore[arg-type]
        record = {f"train/{name}/loss": float(losses[task]) for task, name in enumerate(self.tasks) if seen[task]}
        record |= {f"train/{name}/rows": float(rows[task]) for task, name in enumerate(self.tasks)}
        self._report(record | {"train/loss": float((losses * importance)[seen].sum())})
        self.weighting.epoch_end(losses * importance, seen)
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

    def predict_step(self, batch: Sequence[Prepared | Unreadable], batch_idx: int) -> list[dict[str, Tensor]]:
        """Raw predictions of each picture that can be read."""
        return forward_each(self, [item for item in batch if isinstance(item, Prepared)], self.device)

    def _evaluate(self, split: str, batch: Batch) -> dict[str, Tensor]:
        predictions: dict[str, Tensor] = self(batch.inputs, batch.padding)
        evaluation: Evaluation = self.evaluations[split]  # type: ignore[assignment]
        evaluation.update(predictions, self.masked_losses(predictions, batch), batch)
        return predictions

    def _finish(self, split: str) -> None:
        evaluation: Evaluation = self.evaluations[split]  # type: ignore[assignment]
        results = evaluation.compute(tune=split == "val" and not self.trainer.sanity_checking)
        evaluation.reset()
        self.results[split] = results
        if self.trainer.sanity_checking:
            return
        record: dict[str, float] = {}
        for name, result in results.items():
            record |= {f"{split}/{name}/{key}": value for key, value in result.values.items()}
            record[f"{split}/{name}/count"] = float(result.count)
        main = {name: result for name, result in results.items() if not result.auxiliary}
        if (value := score(results)) is not None:
            losses = [float(self.tasks[name].weight) * result.values["loss"] for name, result in main.items()]  # type: ignore[arg-type]
            record |= {f"{split}/loss": sum(losses), f"{split}/score": value}
        self._report(record)

    def on_validation_epoch_end(self) -> None:
        """Compute, log and keep the results."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Compute, log and keep the results."""
        self._finish("test")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other tasks, classes or shapes before anything is loaded."""
        training = self.trainer.state.fn == "fit"
        check_state(self, checkpoint["state_dict"], training)
        if self.trainer.state.fn in ("test", "predict"):
            check_tuned(self.tasks)
        self._checkpoint = checkpoint.get("mtl_hyperparameters") if training else None
        self._unread = dict(checkpoint.get("mtl_unread", {})) if training else {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how optimizer and schedule were configured, and the values that a plateau's schedule has not looked at yet."""
        checkpoint["mtl_hyperparameters"] = self._configured
        checkpoint["mtl_unread"] = dict(self._unread)

    def on_train_start(self) -> None:
        """Values of optimizer and schedule that were changed for a resumed run hold."""
        if self._checkpoint is not None:
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            optimizer = self.trainer.optimizers[0]
            apply_changes(self._checkpoint, self._configured, optimizer, schedulers[0] if schedulers else None, self._twin)
            self._checkpoint = None

    def configure_optimizers(self) -> Any:
        """Parameter groups encoder, heads and weighting, with their learning-rate multipliers, and the schedule."""
        assert self.model is not None
        optimizer, scheduler, settings = self._build_optimizer(parameter_groups(self.model, self.weighting))
        self._configured = snapshot(optimizer, scheduler)
        if self._checkpoint is not None:
            check_classes(self._checkpoint, self._configured)
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler} | settings}

    def _twin(self) -> tuple[Optimizer, Any]:
        assert self.model is not None
        groups = parameter_groups(self.model, self.weighting)
        return self._build_optimizer([group | {"params": [nn.Parameter(torch.zeros(1))]} for group in groups])[:2]

    def _build_optimizer(self, groups: list[dict[str, Any]]) -> tuple[Optimizer, Any, dict[str, Any]]:
        try:
            optimizer = self._optimizer(groups)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model.optimizer: {error}") from error
        multipliers = dict(self._multipliers)
        for group in optimizer.param_groups:
            if group["name"] == "weighting":
                group["weight_decay"] = 0.0
                if self.weighting.lr is not None:
                    multipliers["weighting"] = self.weighting.lr / group["lr"] if group["lr"] else 1.0
            group["lr"] *= multipliers.get(group["name"], 1.0)
        scheduler, settings = self._build_scheduler(optimizer)
        if scheduler is not None:
            scale_scheduled(optimizer, multipliers)
        return optimizer, scheduler, settings

    def _build_scheduler(self, optimizer: Optimizer) -> tuple[Any, dict[str, Any]]:
        if self._scheduler is None:
            return None, {}
        try:
            scheduler = self._scheduler.scheduler(optimizer)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model.scheduler: {error}") from error
        if getattr(scheduler, "total_steps", 0) is None:
            scheduler.total_steps = run_length(self.trainer, self._scheduler)  # type: ignore[union-attr, attr-defined]
        settings: dict[str, Any] = {"interval": self._scheduler.interval, "frequency": self._scheduler.frequency}
        if isinstance(scheduler, ReduceLROnPlateau) or self._scheduler.monitor is not None:
            monitor = self._scheduler.monitor or getattr(scheduler, "monitor", None)
            if monitor is None:
                raise ConfigError("model.scheduler.monitor is not set: ReduceLROnPlateau needs a value to follow, e.g. val/loss")
            counts = self.trainer.datamodule.counts().get("val", {})  # type: ignore[attr-defined]
            check_monitor("model.scheduler.monitor", monitor, self, counts)
            settings |= {"monitor": monitor, "strict": False}
        return scheduler, settings


def _choose(tasks: Mapping[str, Task], only: list[str] | None) -> dict[str, Task]:
    if not tasks:
        raise ConfigError("model.tasks is empty; name at least one task")
    for name in tasks:
        if not name.isidentifier() or re.search("__", name):
            raise ConfigError(f"model.tasks: '{name}' is no task name; use letters, digits and single underscores, e.g. head_box")
        if name in RESERVED:
            raise ConfigError(f"model.tasks: '{name}' is a reserved word; choose another name, e.g. {name}_label")
    if only is None:
        return dict(tasks)
    unknown = [name for name in only if name not in tasks]
    if unknown or not only:
        raise ConfigError(f"model.only names {unknown or 'no task'}; the configured tasks are {list(tasks)}")
    return {name: task for name, task in tasks.items() if name in only}
