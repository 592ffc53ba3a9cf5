"""The batch contract: what the data room hands to the model, and the collate that makes it.

A *sample* is a dict: ``image`` [C, H, W] (or several inputs under their names, of which a row may lack some) or ``text`` (token
ids [L], and what they say as ``words``), ``id``, optionally ``size`` (the file's own height and width), and the targets under
their tasks' names. What is missing is an absent key or None, never a magic number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtl_lightning.bad_numbers import Fault
from mtl_lightning.errors import DataError
from mtl_lightning.inputs import IMAGE

Kind = Literal["class", "multilabel", "numbers", "angle", "mask", "depth", "normals"]
IGNORE = -1
"""Class index of a pixel without a label."""


@dataclass(frozen=True)
class TargetSpec:
    """What one task's target looks like, so that data modules and the collate need not know the task.

    Attributes:
        kind: how a data module reads it and how it moves under augmentation.
        shape: one row's shape, without height and width for dense targets: () class index, (D,) numbers, angles or labels,
            () mask [H, W], (1,) depth [1, H, W], (3,) normals [3, H, W].
        dtype: of the batch tensor.
        fill: the finite value of unlabelled rows and of padding.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: float

    @property
    def dense(self) -> bool:
        """Whether a target has a height and a width."""
        return self.kind in ("mask", "depth", "normals")


@dataclass
class Batch:
    """One step's data.

    Attributes:
        inputs: tensors under their names: pictures [B, C, H, W] in 0..1 (``image``), token ids int64 [B, L] (``text``).
        targets: per task [B, ...]; every task of the run is there, unlabelled rows hold ``TargetSpec.fill``.
        labelled: per task a bool [B].
        ids: the samples' names.
        sizes: [B, 2] height and width of the pictures as stored.
        padding: bool [B, H, W], True where a smaller picture was filled up; None if all pictures are alike.
        partner: per task of a mixed batch int64 [B], the row whose label counts beside the row's own (itself where the row is
            not mixed); tasks that are not here have one label a row.
        share: of the row's own label in the loss, 0..1; the partner's gets the rest.
        given: bool [B] by input: the rows that have it; inputs that are not here are given in all rows. The others are 0.
        texts: what the rows say; empty where inputs are pictures.
        bad: images and labels that are not in it, because they were not finite.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    labelled: dict[str, Tensor]
    ids: list[str]
    sizes: Tensor
    padding: Tensor | None = None
    partner: dict[str, Tensor] = field(default_factory=dict)
    share: float = 1.0
    given: dict[str, Tensor] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    bad: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def needed(self, tasks: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        """The rows of each input that its tasks learn from: bool [B]; nothing where there is one input, which all rows have.

        Args:
            tasks: those that read each input.
        """
        if len(self.inputs) == 1 and not self.given:
            return {}
        labelled = {read: torch.stack([self.labelled[name] for name in names]).any(0) for read, names in tasks.items()}
        return {read: rows & self.given[read] if read in self.given else rows for read, rows in labelled.items()}

    def extent(self, row: int) -> tuple[int, int]:
        """Height and width of one row's picture in the batch, without padding; of a text 1 and the number of its words."""
        first = next(iter(self.inputs.values()))
        if first.ndim == 2:
            return 1, int((first[row] != 0).sum())
        height, width = first.shape[-2:]
        if self.padding is None:
            return height, width
        kept = ~self.padding[row]
        return int(kept.any(1).sum()), int(kept.any(0).sum())

    def pictures(self, row: int) -> dict[str, Tensor]:
        """One row's pictures by input, without padding; those that it has."""
        height, width = self.extent(row)
        has = [name for name in self.inputs if name not in self.given or bool(self.given[name][row])]
        return {name: self.inputs[name][row, ..., :height, :width] for name in has}

    def _map(self, function: Any) -> "Batch":
        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, dict):
                return {key: function(tensor) for key, tensor in value.items()}
            return value

        return replace(self, **{entry.name: apply(getattr(self, entry.name)) for entry in fields(self)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (called by the data loader)."""
        return self._map(lambda tensor: tensor.pin_memory())


class Collate:
    """Turns samples into a :class:`Batch`.

    Pictures of different sizes are filled up at the right and the bottom to the largest of the batch; of several inputs, all
    pictures are of one size. Texts are filled up with 0 at their end.

    Args:
        targets: what each task's target looks like.
        inputs: names of the pictures that samples may have.
    """

    def __init__(self, targets: Mapping[str, TargetSpec], inputs: Sequence[str] = (IMAGE,)) -> None:
        self.targets = dict(targets)
        self.inputs = list(inputs)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Make a batch.

        Raises:
            DataError: a label's shape does not fit; it names the sample and the task. Or a sample has no picture, or pictures of
                several inputs differ in size.
        """
        ids = [str(sample["id"]) for sample in samples]
        each = [
            {name: torch.as_tensor(sample[name]) for name in self.inputs if sample.get(name) is not None} for sample in samples
        ]
        if empty := [name for name, row in zip(ids, each, strict=True) if not row]:
            raise DataError(f"{empty[0]}: the sample has no {' and no '.join(self.inputs)}")
        images = [next(iter(row.values())) for row in each]
        if images[0].ndim == 1:
            targets, labelled = self._targets(samples, images, ids, (1, 1))
            lengths = torch.tensor([(1, len(row)) for row in images])
            words = [str(sample.get("words", "")) for sample in samples]
            inputs = {next(iter(each[0])): pad_sequence(images, batch_first=True)}
            return Batch(inputs, targets, labelled, ids, lengths, texts=words)
        sizes = torch.tensor([tuple(sample.get("size", image.shape[-2:])) for sample, image in zip(samples, images, strict=True)])
        height = max(image.shape[-2] for image in images)
        width = max(image.shape[-1] for image in images)
        inputs, given = {}, {}
        for name in self.inputs:
            inputs[name], given[name] = self._pictures(name, each, ids, height, width)
        padding = None
        if any(image.shape[-2:] != (height, width) for image in images):
            padding = torch.ones(len(images), height, width, dtype=torch.bool)
            for row, image in enumerate(images):
                padding[row, : image.shape[-2], : image.shape[-1]] = False
        targets, labelled = self._targets(samples, images, ids, (height, width))
        some = {name: rows for name, rows in given.items() if not bool(rows.all())}
        return Batch(inputs, targets, labelled, ids, sizes, padding, given=some)

    def _targets(
        self, samples: Sequence[Mapping[str, Any]], images: list[Tensor], ids: list[str], size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        targets, labelled = {}, {}
        for name, spec in self.targets.items():
            rows = [sample.get(name) for sample in samples]
            targets[name], labelled[name] = self._stack(name, spec, rows, images, ids, size)
        return targets, labelled

    def _pictures(
        self, name: str, each: Sequence[Mapping[str, Tensor]], ids: Sequence[str], height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """One input of all rows, 0 where a row lacks it, and which rows have it."""
        rows = [row.get(name) for row in each]
        for place, picture in zip(ids, rows, strict=True):
            if len(self.inputs) > 1 and picture is not None and picture.shape[-2:] != (height, width):
                raise DataError(
                    f"{place}: {name} is {picture.shape[-1]} wide and {picture.shape[-2]} high, another picture of the batch "
                    f"{width} and {height}; pictures of several inputs are of one size: set data.init_args.image_size"
                )
        empty = torch.zeros_like(next(iter(each[0].values())))
        stacked = torch.stack([_pad(empty if picture is None else picture, height, width, 0.0) for picture in rows])
        return stacked, torch.tensor([picture is not None for picture in rows])

    @staticmethod
    def _stack(
        name: str, spec: TargetSpec, rows: list[Any], images: list[Tensor], ids: list[str], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        shape = spec.shape + size if spec.dense else spec.shape
        target = torch.full((len(rows), *shape), spec.fill, dtype=spec.dtype)
        labelled = torch.zeros(len(rows), dtype=torch.bool)
        for row, value in enumerate(rows):
            if value is None:
                continue
            value = torch.as_tensor(value)
            expected = spec.shape + tuple(images[row].shape[-2:]) if spec.dense else spec.shape
            if tuple(value.shape) != expected:
                raise DataError(
                    f"{ids[row]}: the label of task '{name}' has shape {tuple(value.shape)}, expected {expected}"
                    + (" (as high and wide as the image)" if spec.dense else "")
                )
            if spec.dense:
                target[row, ..., : value.shape[-2], : value.shape[-1]] = value.to(spec.dtype)
            else:
                target[row] = value.to(spec.dtype)
            labelled[row] = True
        return target, labelled


def _pad(tensor: Tensor, height: int, width: int, fill: float) -> Tensor:
    missing = (0, width - tensor.shape[-1], 0, height - tensor.shape[-2])
    return F.pad(tensor, missing, value=fill) if any(missing) else tensor
