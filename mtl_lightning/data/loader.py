"""Loaders that resume in mid-epoch: shuffling is a pure function of (seed, epoch), augmentation of (seed, epoch, sample)."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from mtl_lightning.batch import Batch, Collate, TargetSpec
from mtl_lightning.data.balance import balanced_order
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.seeding import sample_randomness
from mtl_lightning.data.shield import shield
from mtl_lightning.data.sieve import sieve
from mtl_lightning.data.transforms import each_picture
from mtl_lightning.data.workers import Workers, worker_options
from mtl_lightning.errors import DataError, MTLError
from mtl_lightning.inputs import IMAGE
from mtl_lightning.mixing import Mixing

Sample = dict[str, Any]


class Pick(NamedTuple):
    """What the sampler asks the data set for.

    Attributes:
        epoch: seeds the augmentation.
        row: which.
        filler: only fills up an uneven last batch of several processes; it comes without labels.
        turn: how many rows this process was given before in the epoch.
        copy: how many times the row came before in the epoch; each time it is augmented in another way.
    """

    epoch: int
    row: int
    filler: bool = False
    turn: int = 0
    copy: int = 0


class EpochSampler(DistributedSampler[Any]):
    """Each epoch's rows for one process, in an order that only (seed, epoch) decides.

    Processes take turns through one common order, so that a global batch holds the same rows on any number of them. It is a
    ``DistributedSampler`` so that Lightning leaves it alone.

    Args:
        dataset: the split.
        shuffle: a new order every epoch; otherwise the rows in order, augmented as in epoch 0.
        seed: of the order.
        replicas: number of processes.
        rank: this process.
        classes: int64 [N], the class of each row or -1, which are to come equally often
            (:func:`~mtl_lightning.data.balance.balanced_order`); None takes every row once.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        shuffle: bool,
        seed: int,
        replicas: int = 1,
        rank: int = 0,
        classes: Tensor | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas=replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.classes = classes
        self.start = 0

    def __iter__(self) -> Iterator[Any]:
        length = len(self.dataset)  # type: ignore[arg-type]
        epoch = self.epoch if self.shuffle else 0
        order, copies = list(range(length)), [0] * length
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            if self.classes is None:
                order = torch.randperm(length, generator=generator).tolist()
            else:
                order, copies = (part.tolist() for part in balanced_order(self.classes, generator))
        start, self.start = self.start, 0
        for step in range(start, len(self)):
            position = step * self.num_replicas + self.rank
            place = position % length
            yield Pick(epoch, order[place], filler=position >= length, turn=step, copy=copies[place])


class AugmentedDataset(Dataset[Sample]):
    """A split with its transforms; every sample is augmented from its own seed.

    Args:
        dataset: the rows as stored.
        transform: from a stored row with one picture to a finished sample.
        seed: of the augmentation.
        inputs: the pictures that a row may have, each with the tasks that read it.
    """

    def __init__(
        self,
        dataset: LabelledDataset,
        transform: Callable[[Sample], Sample],
        seed: int,
        inputs: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.inputs = dict(inputs or {IMAGE: []})

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, pick: Pick) -> Sample:
        sample = self.dataset[pick.row]
        if pick.filler:
            sample = {key: sample[key] for key in ("id", "size", *self.inputs) if key in sample}

        def augmented(part: Sample) -> Sample:
            with sample_randomness(self.seed, pick.epoch, pick.row + pick.copy * len(self), restore=get_worker_info() is None):
                return self.transform(part)

        return augmented(sample) if len(self.inputs) == 1 else each_picture(sample, self.inputs, augmented)

    def __getitems__(self, picks: Sequence[Pick]) -> tuple[Sequence[Pick], list[Sample]] | MTLError:
        """A batch and its picks; an error of ours travels as a value, because a worker would wrap it in its traceback."""
        try:
            return picks, [self[pick] for pick in picks]
        except MTLError as error:
            return error


class _CollateOrError:
    def __init__(
        self,
        targets: Mapping[str, TargetSpec],
        inputs: Mapping[str, Sequence[str]],
        batch_size: int,
        order: EpochSampler,
        mixing: Mixing | None,
    ) -> None:
        self.collate, self.inputs = Collate(targets, list(inputs)), inputs
        self.batch_size, self.mixing = batch_size, mixing
        self.seed, self.rank = order.seed, order.rank

    def __call__(self, fetched: tuple[Sequence[Pick], list[Sample]] | MTLError) -> Batch | MTLError:
        if isinstance(fetched, MTLError):
            return fetched
        picks, samples = fetched
        first = picks[0]
        try:
            samples, bad = sieve(samples, self.collate.targets, self.inputs, [pick.filler for pick in picks])
            batch = self.collate(samples)
            batch.bad = bad
            if self.mixing is None:
                return batch
            return self.mixing(batch, self.collate.targets, (self.seed, first.epoch, first.turn // self.batch_size), self.rank)
        except MTLError as error:
            return error


class ResumableLoader(DataLoader[Any]):
    """A loader that knows how far it got; Lightning keeps its state in the checkpoint.

    ``waited`` counts the seconds in which whoever iterates waited for a batch, and ``rows`` the rows handed out.

    Args:
        dataset: augmented split.
        targets: what each task's target looks like.
        sampler: its order.
        batch_size: rows per process.
        drop_last: leave out an incomplete last batch.
        num_workers: processes that prepare batches.
        pin_memory: page-locked batches.
        mixing: of the rows of a batch.
        timeout: seconds that a batch may take in the workers; 0 waits for ever.
    """

    def __init__(
        self,
        dataset: AugmentedDataset,
        targets: Mapping[str, TargetSpec],
        sampler: EpochSampler,
        batch_size: int,
        drop_last: bool,
        num_workers: int,
        pin_memory: bool,
        mixing: Mixing | None = None,
        timeout: float = 0,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=shield,
            collate_fn=_CollateOrError(targets, dataset.inputs, batch_size, sampler, mixing),  # type: ignore[arg-type]
            # A generator of its own: iterators would otherwise draw from the global one and a resumed run would differ.
            generator=torch.Generator().manual_seed(sampler.seed),
            **worker_options(num_workers, timeout),
        )
        self.order = sampler
        self.position = 0
        self.waited, self.rows = 0.0, 0
        self.watch = Workers(timeout)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.position = self.order.start // (self.batch_size or 1)
        start = time.perf_counter()
        for batch in self.watch.watched(super().__iter__, self._next_rows):
            if isinstance(batch, MTLError):
                self.watch.end()
                raise batch
            self.waited += time.perf_counter() - start
            self.position += 1
            self.rows += len(batch)
            yield batch
            start = time.perf_counter()

    def _next_rows(self) -> list[str]:
        """The names of the rows of the next batch."""
        self.order.start = self.position * (self.batch_size or 1)
        return [str(self.dataset.dataset.ids[pick.row]) for pick in islice(self.order, self.batch_size)]  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many rows of it were handed out, over all processes."""
        epoch, position = self.order.epoch, self.position
        if position >= len(self):
            epoch, position = epoch + 1, 0
        return {"epoch": epoch, "rows": position * self.global_batch, "batch": self.global_batch}

    @property
    def global_batch(self) -> int:
        """Rows of a batch, over all processes."""
        return (self.batch_size or 1) * self.order.num_replicas

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration where :meth:`state_dict` was taken.

        Raises:
            DataError: in mid-epoch, with batches of another size: the trainer goes on counting in those of before, and would miss
                the end of the epoch.
        """
        batch, before = self.global_batch, state.get("batch", self.global_batch)
        if state["rows"] and (before != batch or state["rows"] % batch):
            raise DataError(
                f"data.init_args.batch_size is {self.batch_size} on {self.order.num_replicas} process"
                f"{'es' * (self.order.num_replicas > 1)}, which makes batches of {batch} rows, and the checkpoint was taken in "
                f"mid-epoch, after {state['rows']} rows in batches of {before}; set it so that batch size times processes is "
                f"{before} (with trainer.max_epochs={state['epoch'] + 1} the epoch is finished so, and the next one can have "
                "others), or start a new run from a checkpoint of an epoch's end"
            )
        # Here and not later: with workers, the iterator prefetches before the trainer sets the epoch.
        self.order.set_epoch(state["epoch"])
        self.order.start = state["rows"] // self.order.num_replicas


class FurtherBatches:
    """The batches of a loader, epoch after epoch, without end.

    Args:
        loader: shuffled.
    """

    def __init__(self, loader: ResumableLoader) -> None:
        self.loader = loader
        self._batches: Iterator[Batch] | None = None

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = iter(self.loader)
        batch = next(self._batches, None)
        if batch is None:
            self.loader.order.set_epoch(self.loader.order.epoch + 1)
            self._batches = iter(self.loader)
            batch = next(self._batches)
        return batch

    def state_dict(self) -> dict[str, int]:
        """How far it got."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there; with batches of another size, from the last of these that is whole: nobody counts the batches."""
        batch = self.loader.global_batch
        self.loader.load_state_dict(state | {"rows": state["rows"] // batch * batch, "batch": batch})
        self._batches = None


class Streams:
    """Further batches by number, opened when they are first asked for.

    Args:
        positions: how far each was, from a checkpoint.
    """

    def __init__(self, positions: Mapping[int, dict[str, int]] | None = None) -> None:
        self._open: dict[int, FurtherBatches] = {}
        self._positions = dict(positions or {})

    def next(self, number: int, opened: Callable[[int], FurtherBatches]) -> Batch:
        """The next batch of a stream.

        Args:
            number: of the stream, from 0.
            opened: gives stream number + 1 of the data.
        """
        if number not in self._open:
            self._open[number] = opened(number + 1)
            if number in self._positions:
                self._open[number].load_state_dict(self._positions.pop(number))
        return next(self._open[number])

    def state_dict(self) -> dict[int, dict[str, int]]:
        """How far each is."""
        return self._positions | {number: stream.state_dict() for number, stream in self._open.items()}
