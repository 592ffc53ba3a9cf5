"""LightningCLI with a folder for every run, and resuming."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

import mtl_lightning.architectures
import mtl_lightning.data
import mtl_lightning.encoders
import mtl_lightning.heads
import mtl_lightning.schedule
import mtl_lightning.tasks
import mtl_lightning.weighting
from mtl_lightning.blame import REFUSALS, Builder, Located, explain, origin
from mtl_lightning.callbacks.best import BestCheckpoint
from mtl_lightning.callbacks.checkpoints import LastCheckpoint
from mtl_lightning.callbacks.data_speed import DataSpeed
from mtl_lightning.callbacks.metrics_csv import MetricsCSV
from mtl_lightning.callbacks.network import NetworkPage
from mtl_lightning.callbacks.predictions import PredictionWriter, check_folder
from mtl_lightning.callbacks.progress import EpochLines, TaskBar
from mtl_lightning.callbacks.report import Report
from mtl_lightning.callbacks.requeue import never_requeue
from mtl_lightning.callbacks.resume import Resume
from mtl_lightning.callbacks.sharing import WatchSharing
from mtl_lightning.callbacks.together import EndTogether
from mtl_lightning.callbacks.tracking import Tracking
from mtl_lightning.callbacks.wandb_runs import connect, prepare
from mtl_lightning.callbacks.whole import WholeCheckpointIO
from mtl_lightning.checkpoint import load_checkpoint, restore_tasks
from mtl_lightning.config import CheckpointOptions, TaskKeepingParser, TrackingOptions
from mtl_lightning.encoders.weights import without_pretrained
from mtl_lightning.errors import CheckpointError, ConfigError, MTLError
from mtl_lightning.examine import examine
from mtl_lightning.launch import LAUNCHED, Peers
from mtl_lightning.precision import check_precision, for_predictions
from mtl_lightning.running import Hold
from mtl_lightning.runs import (
    BEST,
    CHECKPOINTS,
    FINISHED,
    LAST,
    check_name,
    choose_run,
    discard,
    find_checkpoint,
    keep_config,
    latest_run,
    new_folder,
)
from mtl_lightning.storage import expanded, replace_text
from mtl_lightning.strategies import check_start
from mtl_lightning.trainer import MultiTaskTrainer

# Classes that are imported can be named without their package; those of the data room are imported on first use.
for _name in mtl_lightning.data.__all__:
    getattr(mtl_lightning.data, _name)


class MTLCLI(LightningCLI):
    """``fit``, ``validate``, ``test``, ``predict`` and ``check`` from one YAML."""

    claimed: ClassVar[Path | None] = None
    """The folder made for this run, to be taken away again if it comes to nothing."""
    held: ClassVar[Hold | None] = None
    """Keeps others from training in this run's folder; the first process's."""
    peers: ClassVar[Peers | None] = None
    """The run's other processes."""
    started: ClassVar[int] = 0
    """Runs of this process so far."""
    asked: ClassVar[str | None] = None
    """The first word of the command line."""
    folder: Path
    which: str | None = None
    """``--ckpt_path``."""
    checkpoint: Path | None = None
    wandb: dict[str, str] | None = None
    """What identifies the W&B run."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's and ours, with the arguments that are no options; one alone where it is asked for: a parser takes time."""
        known = LightningCLI.subcommands() | {"check": {"model", "datamodule"}}
        return {MTLCLI.asked: known[MTLCLI.asked]} if MTLCLI.asked in known else known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The entries beside model, data and trainer."""
        parser.add_argument("--name", type=str, default="run", help="Name of the run; its folder is RUNS/NAME, NAME-2, …")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all run folders.")
        parser.add_argument("--checkpoint", type=CheckpointOptions, default=CheckpointOptions(), help="Checkpoint options.")
        parser.add_argument("--tracking", type=TrackingOptions, default=TrackingOptions(), help="Tracking options.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, without a warning when called from Python."""
        TaskKeepingParser.given, TaskKeepingParser.folder = sys.argv[1:] if args is None else args, Path.cwd()
        self.config = parser.parse_object(args) if isinstance(args, dict | Namespace) else parser.parse_args(args)
        command = self.config.get("subcommand")
        if command:
            examine(command, self.config[command].as_dict())
        if command and "ckpt_path" in self.config[command]:
            # Lightning would open it, to look for hyperparameters that ours do not have; and config.yaml starts a run of its own.
            self.which, self.config[command].ckpt_path = self.config[command].ckpt_path, None

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint and the run's folder."""
        config = self.config[self.subcommand]
        root, name, which = expanded(config.runs), config.name, self.which
        check_name(name)
        self.decided = self._agreed(lambda: json.dumps([str(path or "") for path in self._decide(root, name, which)]))
        checkpoint, folder = json.loads(self.decided)
        self.folder, self.checkpoint = Path(folder), Path(checkpoint) if checkpoint else None
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise CheckpointError(
                f"{self.checkpoint}: the first process found it, and this machine does not; put it on a disk that all share"
            )
        if self.subcommand == "predict":
            check_folder(self._predictions())
        self.resumed = self.subcommand == "fit" and which in ("last", "auto") and self.checkpoint is not None
        self.dump = self._parser(self.subcommand).dump(config, skip_none=False)
        self.loggers = _listed(config.trainer.logger)
        if self.subcommand == "fit":
            self.wandb = prepare(self.loggers, self.folder, self.checkpoint if self.resumed else None)
        if self.checkpoint is not None:
            rank_zero_info(f"Checkpoint {self.checkpoint}")

    def _agreed(self, decide: Callable[[], str]) -> str:
        """What the first process decides, and not each for itself: by now another run may be the latest, or have the name."""
        if self.peers is None:
            if self.config[self.subcommand].trainer.num_nodes > 1 and self.subcommand != "check":
                raise ConfigError(
                    "trainer.num_nodes is more than 1, and nothing says where the other nodes are: start with torchrun or srun, "
                    "or set NODE_RANK, MASTER_ADDR and MASTER_PORT on each node"
                )
            return decide()
        if self.subcommand in ("check", "predict"):
            raise ConfigError(f"{self.subcommand} runs on one process: start it without torchrun or srun")
        return self.peers.agree(decide)

    def _decide(self, root: Path, name: str, which: str | None) -> tuple[Path | None, Path]:
        if self.subcommand == "check":
            return None, self._claim(root, f"{name}-check")
        fit = self.subcommand == "fit"
        if which == "auto":
            if not fit:
                raise ConfigError(f"--ckpt_path auto is for fit; give {self.subcommand} last, best, or the path of a .ckpt file")
            goes_on, why = choose_run(root, name)
            rank_zero_only(print)(f"--ckpt_path auto: {why}", flush=True)
            which = "last" if goes_on else None
        if fit and not which:
            return None, self._claim(root, name)
        if fit and which == "last" and (latest := latest_run(root, name)) is not None:
            # Before its checkpoint is looked for: another one would go on saving.
            MTLCLI.held = Hold(latest)
        checkpoint, folder = find_checkpoint(root, name, which)
        if folder is None or (fit and which != "last"):
            folder = self._claim(root, name)
        return checkpoint, folder

    def _claim(self, root: Path, name: str) -> Path:
        folder = MTLCLI.claimed = new_folder(root, name)
        if self.subcommand == "fit":
            MTLCLI.held = Hold(folder)
        return folder

    @classmethod
    def leave_folder(cls) -> None:
        """Let others train in this run's folder, and take away one that came to nothing."""
        if cls.held is not None:
            cls.held.release()
        if cls.claimed is not None:
            discard(cls.claimed)

    def instantiate_classes(self) -> None:
        """Build everything; what a class refuses in its constructor is an error of the configuration."""
        # Each with the key where it was written, also what is built later, when the training labels are known.
        self.parser.add_instantiator(Builder(self.config[self.subcommand].as_dict()), object)
        try:
            # A checkpoint holds every weight; the file that training started from may be gone.
            with without_pretrained() if self.checkpoint is not None else nullcontext():
                super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            cause = origin(error)
            raise cause if isinstance(cause, MTLError) else ConfigError(f"{cause}; change the configuration") from error

    def after_instantiate_classes(self) -> None:
        """One seed for all, unless the data module has its own."""
        if self.datamodule.seed is None:
            self.datamodule.seed = self.config[self.subcommand].seed_everything
        if self.subcommand == "predict" and (inputs := self.config[self.subcommand].inputs) is not None:
            self._take_inputs(expanded(inputs))

    def _take_inputs(self, inputs: Path) -> None:
        """Predict what one has: what tasks know comes from the checkpoint, no data of the run's is needed."""
        config = self.config[self.subcommand]
        note = self.datamodule.take_inputs(inputs, config.column, config.on_error)
        assert self.checkpoint is not None
        restore_tasks(dict(self.model.tasks.items()), load_checkpoint(self.checkpoint)["state_dict"])
        if note:
            rank_zero_only(print)(note, flush=True)

    def _predictions(self) -> Path:
        folder = self.config[self.subcommand].folder
        return expanded(folder) if folder else self.folder / "predictions"

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has: its folder, metrics.csv, checkpoints, progress, report."""
        config = self.config_init[self.subcommand]
        check_precision(config.trainer.precision, config.trainer.accelerator)
        if self.subcommand == "check":
            return self._built_trainer(**self._nothing_saved(), **kwargs)
        dump = self.dump
        options: CheckpointOptions = config.checkpoint
        trainer = config.trainer
        if trainer.overfit_batches:
            raise ConfigError(
                "trainer.overfit_batches is not supported: it would replace the loader that shuffles and resumes; set "
                "trainer.limit_train_batches and trainer.limit_val_batches to a few batches"
            )
        if trainer.sync_batchnorm and (trainer.accelerator == "cpu" or not torch.cuda.is_available()):
            raise ConfigError("trainer.sync_batchnorm works on GPUs only; leave it out, or take an encoder without batch norm")
        fit = self.subcommand == "fit"
        label = self.checkpoint.name if self.checkpoint else "the untrained network"
        self.report = Report(self.folder, label)
        self.tracking = Tracking(dump, self.folder, config.tracking, self.wandb)
        # Before the report, which shows their pictures, too.
        seen = [NetworkPage(self.folder, trainer.enable_model_summary is not False), WatchSharing(self.folder)]
        callbacks = [EndTogether(lambda: self.peers), *_listed(trainer.callbacks), *seen, self.report]
        bar = trainer.enable_progress_bar is not False
        terminal = sys.stdout.isatty()
        if bar:
            callbacks.append(TaskBar() if terminal else EpochLines())
        if fit:
            folder = self.folder / CHECKPOINTS
            callbacks += [
                self.tracking,
                Resume(dump, self.resumed, lambda: self._go_on(dump)),
                BestCheckpoint(folder, options.monitor, options.mode),
                LastCheckpoint(folder, options.every_n_steps, options.every_minutes),
                DataSpeed(),
            ]
            if not self.resumed:
                self._save_config(dump)
            rank_zero_only(print)(f"Run folder {self.folder}", flush=True)
        if self.subcommand == "predict":
            source = {"checkpoint": str(self.checkpoint), "inputs": self.config.predict.inputs or "the test split"}
            callbacks.append(PredictionWriter(self._predictions(), source))
            kwargs["precision"] = for_predictions(trainer.precision)
        loggers: list[Logger] = [MetricsCSV(self.folder)] if fit else []
        if fit and trainer.logger not in (None, True, False):
            loggers += _listed(trainer.logger)
        built = self._built_trainer(
            **{
                "callbacks": callbacks,
                "logger": loggers,
                "plugins": [*_listed(trainer.plugins), WholeCheckpointIO(options.previous)],
                "default_root_dir": str(self.folder),
                "enable_progress_bar": bar and terminal,
                "enable_model_summary": bool(trainer.enable_model_summary),
                **kwargs,
            }
        )
        self._join(built.world_size)
        return built

    def _join(self, world: int) -> None:
        """Be ready for the processes that the trainer starts, or check that those there are take part."""
        peers = self.peers
        if self.subcommand == "predict" and world > 1:
            raise ConfigError("predict runs on one process: set trainer.devices to 1")
        if peers is None and world > 1:
            peers = MTLCLI.peers = Peers(("127.0.0.1", 0), True, True)
            peers.agree(lambda: self.decided)
        elif peers is not None:
            if world == 1:
                raise ConfigError(
                    "several processes were started, and the trainer is configured for one; set trainer.devices to the processes "
                    "of a node, trainer.num_nodes to the nodes, and trainer.strategy to ddp"
                )
            peers.world = world
        if peers is not None:
            peers.at_end = self.leave_folder
            if "LOCAL_RANK" not in os.environ:
                os.environ[LAUNCHED] = "{}:{}:{}".format(*peers.address, os.getpid())

    def _built_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[self.subcommand].trainer
        check_start(config.strategy)
        try:
            built = super().instantiate_trainer(**kwargs)
        except (*REFUSALS, MisconfigurationException) as error:
            raise Located(explain(error, "trainer", MultiTaskTrainer, config.as_dict())) from error
        check_start(config.strategy, built.strategy)
        if self.subcommand != "fit":
            never_requeue(built)
        return built

    def _nothing_saved(self) -> dict[str, Any]:
        from mtl_lightning.analysis.check.step import StepProbe

        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "fast_dev_run")
        return {
            "callbacks": [StepProbe()],
            "default_root_dir": str(self.folder),
            **{"devices": 1, "num_nodes": 1, "strategy": "auto", "num_sanity_val_steps": 0},
            # Not limit_val_batches: what follows a validation's values is to be judged as in a run.
            "check_val_every_n_epoch": 2**31,
            **dict.fromkeys(off, False),
        }

    @rank_zero_only
    def _go_on(self, dump: str) -> None:
        (self.folder / FINISHED).unlink(missing_ok=True)
        self._save_config(dump)

    @rank_zero_only
    def _save_config(self, dump: str) -> None:
        keep_config(self.folder, dump)

    def _use_checkpoint(self) -> None:
        arguments = self.config_init[self.subcommand]
        arguments.ckpt_path = str(self.checkpoint) if self.checkpoint else None
        arguments.weights_only = True

    before_validate = before_test = _use_checkpoint

    def before_fit(self) -> None:
        """As before the others; start the W&B run, or say that it cannot be reached."""
        self._use_checkpoint()
        if self.wandb is not None and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            connect(self.trainer, self.loggers, self.folder, self.wandb)

    def before_predict(self) -> None:
        """As before the others; predictions go to files and are not kept."""
        self._use_checkpoint()
        self.config_init[self.subcommand].return_predictions = False

    def after_fit(self) -> None:
        """Evaluate the best checkpoint on the validation split; this writes the run's table and pictures."""
        folder = self.folder / CHECKPOINTS
        best = folder / (BEST if (folder / BEST).exists() else LAST)
        best, exists = self.trainer.strategy.broadcast((best, best.exists()))
        if self.trainer.fast_dev_run and not self.resumed:  # type: ignore[attr-defined]
            # It leaves nothing behind, and must not be the latest run.
            self.leave_folder()
        if not exists and not (self.trainer.interrupted or self.trainer.fast_dev_run):  # type: ignore[attr-defined]
            # The checkpoint it started from is where the run was to end: there is nothing to show, nor to be the latest run.
            self.leave_folder()
            rank_zero_only(print)(_nothing_trained(self.trainer, self.checkpoint), flush=True)
        if not exists or self.trainer.interrupted or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.tracking.finish(self.trainer)
            return
        if len(self.datamodule.splits.get("val", ())) and self.trainer.limit_val_batches:
            self.report.checkpoint = best.name
            self.trainer.validate(self.model, datamodule=self.datamodule, ckpt_path=str(best), verbose=False, weights_only=True)
        else:
            rank_zero_only(self.report.without_validation)(self.model)
            self.tracking.send_report(self.trainer)
        self.tracking.finish(self.trainer)
        rank_zero_only(replace_text)(self.folder / FINISHED, f"{self.trainer.global_step}\n")
        rank_zero_only(print)(f"Table and pictures are in {self.folder}", flush=True)


def _nothing_trained(trainer: Trainer, checkpoint: Path | None) -> str:
    zeros = [key for key in ("max_epochs", "max_steps", "limit_train_batches") if getattr(trainer, key) == 0]
    if zeros:
        return f"Nothing was trained: {' and '.join(f'trainer.{key} is 0' for key in zeros)}; give a larger number"
    if checkpoint is None:
        return "Nothing was trained: the run was to end before it had saved anything; raise trainer.max_time"
    return (
        f"Nothing was left to train: {checkpoint} is at epoch {trainer.current_epoch}, step {trainer.global_step}; "
        "raise trainer.max_epochs or trainer.max_steps"
    )


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
