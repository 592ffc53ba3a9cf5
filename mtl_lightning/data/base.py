"""What every data module shares: splits, loaders, the label table, and what tasks learn from the training labels."""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from mtl_lightning.batch import Batch, Collate, TargetSpec
from mtl_lightning.checks import SEEDS, at_least, between
from mtl_lightning.data.balance import check_balanced
from mtl_lightning.data.counts import show_counts
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.found import show_found
from mtl_lightning.data.loader import AugmentedDataset, EpochSampler, FurtherBatches, Pick, ResumableLoader
from mtl_lightning.data.opening import MAX_PIXELS
from mtl_lightning.data.pictures import (
    FilesToPredict,
    OnError,
    Pictures,
    PreparedBatches,
    RowsToPredict,
    check_pictures,
    find_pictures,
)
from mtl_lightning.data.prepare import Preparation
from mtl_lightning.data.sieve import bad_target
from mtl_lightning.data.text.prepare import TextPreparation
from mtl_lightning.data.transforms import Transform, TransformError, compose
from mtl_lightning.data.workers import WORKER_TIMEOUT, check_timeout
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.inputs import IMAGE, readers
from mtl_lightning.mixing import Mixing
from mtl_lightning.tasks.base import Task

SPLITS = {"fit": ("train", "val"), "validate": ("train", "val"), "test": ("train", "test"), "predict": ("train", "test")}
"""The splits each subcommand needs; the training labels always, since tasks learn from them."""
LARGEST = 2**16
"""Pixels of a picture's side."""
FURTHER = 7_368_787
"""Between the seeds of two shuffles of the training split."""
LEARN_ROWS = 256
"""Rows of dense labels that tasks learn their statistics from."""


class MultiTaskDataModule(pl.LightningDataModule):
    """Batches of rows that carry some of the labels: pictures here, texts in ``TextDataModule``.

    Args:
        batch_size: rows per process and step.
        seed: of shuffling and augmentation; None takes the run's ``seed_everything``.
        num_workers: processes that prepare batches; None takes one less than the machine's cores, at most 8.
        pin_memory: page-locked batches; None means yes where a GPU is found.
        image_size: every picture is brought to this height and width (or square side) at the end; None leaves them and fills
            smaller ones up.
        channels: 3 for colour, 1 for grey.
        train_transforms: torchvision v2 transforms of the training split; image, mask, depth, normals and box move together.
        eval_transforms: the same for the other splits.
        drop_last: leave out an incomplete last training batch; None only does so where it would be a single row, of which
            BatchNorm cannot take a variance.
        mixing: MixUp or CutMix of training rows with the same labelled tasks, see :mod:`mtl_lightning.mixing`; None mixes none.
        balance: a classification task whose classes come equally often in training: rows of rare ones several times an epoch,
            of frequent ones not in every epoch. Rows without its label keep their share, and epochs their length.
        max_pixels: what a picture or a file of labels may have by its header; a larger one is an error, and never decoded.
        worker_timeout: seconds that a batch may take in the workers before the run ends with an error, > 0; 0 waits for ever.
            Without workers (``num_workers: 0``) there is no such limit.
    """

    on_error: str = "raise"
    """Whether bad rows stop a run (``raise``) or are left out (``skip``)."""
    size_hint: ClassVar[str] = "what data.init_args says of splits, and rows that were left out, as for data.init_args.max_pixels"
    """What to look at where a split is empty; ``{split}`` is its name."""

    def __init__(
        self,
        batch_size: int = 32,
        seed: int | None = None,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        image_size: int | tuple[int, int] | None = None,
        channels: int = 3,
        train_transforms: list[v2.Transform] | None = None,
        eval_transforms: list[v2.Transform] | None = None,
        drop_last: bool | None = None,
        mixing: Mixing | None = None,
        balance: str | None = None,
        max_pixels: int = MAX_PIXELS,
        worker_timeout: float = WORKER_TIMEOUT,
    ) -> None:
        super().__init__()
        at_least("data.init_args.batch_size", batch_size, 1)
        at_least("data.init_args.max_pixels", max_pixels, 1)
        check_timeout(worker_timeout)
        if channels not in (1, 3):
            raise ConfigError(f"data.init_args.channels is {channels}, expected 1 or 3")
        self.batch_size = batch_size
        self.seed = seed
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if num_workers is not None:
            # Each is a process: what is far too many takes the machine down before anybody can stop it.
            between("data.init_args.num_workers", num_workers, 0, max(64, 4 * cores))
        for side in () if image_size is None else (image_size,) if isinstance(image_size, int) else image_size:
            between("data.init_args.image_size", side, 1, LARGEST)
        if seed is not None:
            between("data.init_args.seed", seed, 0, SEEDS)
        self.num_workers = min(8, max(1, cores - 1)) if num_workers is None else num_workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.image_size = image_size
        self.channels = channels
        self.transforms = {"train": list(train_transforms or []), "eval": list(eval_transforms or [])}
        self.drop_last = drop_last
        self.mixing = mixing
        self.balance = balance
        self.max_pixels = max_pixels
        self.worker_timeout = worker_timeout
        self.tasks: dict[str, Task] | None = None
        self.configured: list[str] = []
        self.found: set[str] = set()  # tasks of classes whose names are those of the training rows
        self.splits: dict[str, LabelledDataset] = {}
        self.image = IMAGE
        self.inputs = [IMAGE]
        self.chosen: dict[str, str] = {}
        self.to_predict: Callable[[], Dataset[Any]] | None = None  # instead of the test split

    @abstractmethod
    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        """Build the asked splits (of train, val, test; leave out those there are none of) and name classes.

        Sets ``task.names`` where it is None. Raises :class:`DataError` for labels that are wrong.
        """

    def examined(self, tasks: Mapping[str, Task]) -> dict[str, LabelledDataset]:
        """All splits there are for ``check``, whose rows tell what is wrong with them (:meth:`LabelledDataset.examine`).

        A data module that raises for bad rows in :meth:`datasets` keeps them here instead.
        """
        return self.datasets(tasks, ("train", "val", "test"))

    def setup(self, stage: str) -> None:
        """Build the splits, print the label table and let each task learn from the training labels."""
        if self.tasks is None:
            if self.trainer is None:
                raise ConfigError("the data module has no tasks: set datamodule.tasks = {name: task} or attach a trainer")
            self.take(self.trainer.lightning_module)
        tasks = self.tasks or {}
        if stage == "predict" and self.to_predict is not None:
            return  # the tasks know from the checkpoint what they learnt
        wanted = [split for split in SPLITS[stage] if split not in self.splits]
        if not wanted:
            return
        self.check_balance(tasks)
        self.check_inputs(tasks)
        found = self.datasets(tasks, wanted)
        for split in wanted:
            if (split != "val" or stage == "validate") and len(found.get(split, ())) == 0:
                raise DataError(f"the {split} split is empty; look at {self.size_hint.format(split=split)}")
        # Other commands than fit are about one split; what the model was trained on may have been other rows than these.
        self.adopt(found, None if stage == "fit" else SPLITS[stage][-1:])

    def take(self, module: Any) -> None:
        """Learn from the module what the run's tasks are, and which input each reads."""
        self.tasks, self.configured, self.chosen = dict(module.tasks.items()), module.configured, dict(module.inputs)

    def check_inputs(self, tasks: Mapping[str, Task]) -> dict[str, list[str]]:
        """The inputs of the data, each with the tasks that read it.

        Raises:
            ConfigError: ``model.inputs`` names what is no task or no input, or does not say which of several a task reads; or
                several inputs have no common size.
        """
        self.check_names("model.inputs", self.chosen)
        read = readers(tasks, self.chosen, self.inputs)
        if len(self.inputs) > 1 and self.image_size is None:
            raise ConfigError(
                f"data.init_args.image_size is not set, and there are several inputs ({', '.join(self.inputs)}), whose pictures "
                "must be of one size: set it"
            )
        if taken := [name for name in self.inputs if name in tasks or name in ("id", "size")]:
            why = "is the name of a task" if taken[0] in tasks else "is a reserved word"
            raise ConfigError(f"data.init_args.inputs: '{taken[0]}' {why}; rename the input, e.g. {taken[0]}_image")
        return {name: read.get(name, []) for name in self.inputs}

    def adopt(self, splits: Mapping[str, LabelledDataset], shown: Sequence[str] | None = None) -> None:
        """Take splits over, print the label table, and let each task learn if the training split is among them.

        Args:
            splits: by name.
            shown: the splits that the table is about; None shows all there are, and which classes were found.

        Raises:
            DataError: a task has no label in the training split.
        """
        self.splits.update(splits)
        show_counts(self.counts(), list(self.tasks or {}), list(self.splits) if shown is None else shown)
        if "train" in splits:
            if shown is None:
                show_found({name: task for name, task in (self.tasks or {}).items() if name in self.found}, splits["train"])
            self._learn()
            self._try_transforms()
            self._survey()

    def transform(self, train: bool) -> Transform:
        """From a stored row to what the collate takes, in training or in evaluation."""
        return compose(self.transforms["train" if train else "eval"], self.image_size)

    def preparation(self) -> Preparation | TextPreparation:
        """How a trained model prepares what it is given."""
        return Preparation(self.transforms["eval"], self.image_size, self.channels, self.max_pixels)

    def preparation_state(self) -> dict[str, str]:
        """What that has learnt from the training split, for checkpoints."""
        return {}

    def restore_preparation(self, state: Mapping[str, str]) -> None:
        """Take over what a checkpoint's has learnt."""

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise :class:`ConfigError` for an encoder that cannot read this data."""

    def take_inputs(self, inputs: Path, column: str | None, on_error: OnError) -> str:
        """Let ``predict`` be about these pictures, and not about the test split.

        Args:
            inputs: a folder, a table or a file.
            column: of the table; None takes that of the data.
            on_error: whether to ``skip`` what cannot be read.

        Returns:
            What was left out, in a line; empty if nothing was.

        Raises:
            DataError: there is nothing to predict, or it cannot be read.
            ConfigError: the table has no such column.
        """
        pictures = self.find_pictures(inputs, column)
        if on_error == "raise":
            check_pictures(pictures, self.max_pixels)
        preparation = Preparation(self.transforms["eval"], self.image_size, self.channels, self.max_pixels)
        self.to_predict = lambda: FilesToPredict(pictures, preparation, on_error)
        return pictures.note

    def find_pictures(self, inputs: Path, column: str | None) -> Pictures:
        """The pictures that ``--inputs`` of ``predict`` means.

        Args:
            inputs: a folder, a CSV or a picture.
            column: of the CSV; None takes that of the configuration.
        """
        return find_pictures(inputs, column or self.image)

    def check_names(self, key: str, names: Iterable[str]) -> None:
        """Raise :class:`ConfigError` for a name that is no task, not even one that this run leaves out.

        Args:
            key: where the names are configured.
            names: what should be tasks.
        """
        for name in names:
            if self.configured and name not in self.configured:
                raise ConfigError(f"{key}.{name}: there is no such task; the tasks are {', '.join(self.configured)}")

    def counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Per split and task the labelled rows and all rows."""
        return {
            split: {task: (int(dataset.labelled(task).sum()), len(dataset)) for task in self.tasks or {}}
            for split, dataset in self.splits.items()
        }

    def check_balance(self, tasks: Mapping[str, Task]) -> None:
        """Raise :class:`ConfigError` if ``balance`` names what has no classes, or a task whose loss is balanced already."""
        if self.balance is not None:
            check_balanced(self.balance, tasks)

    def _classes(self, dataset: LabelledDataset) -> Tensor | None:
        if self.balance is None:
            return None
        rows = np.flatnonzero(dataset.labelled(self.balance))
        classes = torch.full((len(dataset),), -1, dtype=torch.long)
        classes[torch.from_numpy(rows)] = torch.tensor([int(label) for label in dataset.targets(self.balance, rows.tolist())])
        return classes

    def _learn(self) -> None:
        train = self.splits["train"]
        for name, task in (self.tasks or {}).items():
            rows = np.flatnonzero(train.labelled(name))
            if not len(rows):
                raise DataError(
                    f"task '{name}' has no label in the training split ({len(train)} rows); "
                    "check its column, or leave it out with model.only"
                )
            if task.target.dense and len(rows) > LEARN_ROWS:
                rows = np.random.default_rng(self.seed or 0).choice(rows, LEARN_ROWS, replace=False)
            spec = task.target
            task.learn(target for target in train.targets(name, rows.tolist()) if not bad_target(spec, target))

    def _survey(self) -> None:
        if self.mixing is not None:
            specs = self._targets()
            labelled = {name: self.splits["train"].labelled(name) for name in specs}
            rank_zero_info(self.mixing.survey(labelled, specs, self.batch_size))

    def _try_transforms(self) -> None:
        """Move one labelled row of each task now: a transform that cannot would else stop the run somewhere in its epoch."""
        rows = {int(np.flatnonzero(self.splits["train"].labelled(name))[0]) for name in self.tasks or {}}
        for key, train in {"train_transforms": True, "eval_transforms": False}.items():
            augmented = self._augmented("train", train)
            for row in sorted(rows)[: None if train else 1]:
                try:
                    augmented[Pick(0, row)]
                except TransformError as error:
                    raise DataError(f"data.init_args.{key}: {error}") from error

    def _augmented(self, split: str, train: bool, further: int = 0) -> AugmentedDataset:
        seed = (self.seed or 0) + FURTHER * further
        return AugmentedDataset(self.splits[split], self.transform(train), seed, self.check_inputs(self.tasks or {}))

    def _targets(self) -> dict[str, TargetSpec]:
        return {name: task.target for name, task in (self.tasks or {}).items()}

    def _loader(self, split: str, train: bool, further: int = 0) -> ResumableLoader:
        dataset, augmented = self.splits[split], self._augmented(split, train, further)
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        classes = self._classes(dataset) if train else None
        sampler = EpochSampler(augmented, shuffle=train, seed=augmented.seed, replicas=replicas, rank=rank, classes=classes)
        drop = train and (len(sampler) % self.batch_size == 1 if self.drop_last is None else self.drop_last)
        return ResumableLoader(
            augmented,
            self._targets(),
            sampler,
            self.batch_size,
            drop_last=drop and len(sampler) >= self.batch_size > 1,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            mixing=self.mixing if train else None,
            timeout=self.worker_timeout,
        )

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented."""
        return self._loader("train", train=True)

    def first_row(self) -> Batch:
        """The first training row as evaluation would give it: a batch of one."""
        rows = self._augmented("train", train=False)
        return Collate(self._targets(), list(rows.inputs))([rows[Pick(0, 0)]])

    def further_batches(self, number: int) -> FurtherBatches:
        """Batches of the training split in a shuffle of their own, without end, for methods that need several a step.

        Args:
            number: which shuffle, from 1.
        """
        return FurtherBatches(self._loader("train", train=True, further=number))

    def val_dataloader(self) -> Any:
        """In order; empty where there is no validation split."""
        return self._loader("val", train=False) if len(self.splits.get("val", ())) else []

    def test_dataloader(self) -> ResumableLoader:
        """In order."""
        return self._loader("test", train=False)

    def predict_dataloader(self) -> PreparedBatches:
        """What :meth:`take_inputs` was given, or else the rows of the test split, in order and one by one."""
        rows: Dataset[Any]
        if self.to_predict is not None:
            rows = self.to_predict()
        else:
            rows = RowsToPredict(self.splits["test"], self.preparation(), self.seed or 0, self.inputs)
        return PreparedBatches(rows, self.batch_size, self.num_workers, self.worker_timeout)
