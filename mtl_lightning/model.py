"""The network itself: pure torch, to be used and exported without Lightning."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from torch import Tensor, nn

from mtl_lightning.architectures.base import Architecture
from mtl_lightning.architectures.seen import unseen
from mtl_lightning.encoders.base import Encoder, ImageEncoder
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features
from mtl_lightning.heads.base import Head
from mtl_lightning.inputs import IMAGE, readers
from mtl_lightning.still import still
from mtl_lightning.tasks.base import Task


class MultiTaskModel(nn.Module):
    """Encoder and architecture with a head for each task.

    Args:
        tasks: names and kinds; each builds its head.
        architecture: from inputs to each task's features.
        inputs: which of several inputs a task reads; not needed where there is one.
        channels_last: keep pictures, their features and the weights of convolutions in ``torch.channels_last``, which is faster
            on most GPUs with half precision; the numbers are the same but for rounding.

    Raises:
        ConfigError: ``channels_last`` and an encoder that reads no pictures.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        architecture: Architecture,
        inputs: Mapping[str, str] | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.inputs = dict(inputs or {})
        if unsaid := [name for name in tasks if self.inputs and name not in self.inputs]:
            raise ConfigError(
                f"model.inputs does not name {', '.join(unsaid)}; name an input for every task, or none where there is one input"
            )
        self.heads = nn.ModuleDict({name: task.build_head(architecture.specs(name)) for name, task in tasks.items()})
        self.channels_last = channels_last
        if channels_last:
            encoders = [module for module in architecture.modules() if isinstance(module, Encoder)]
            if not any(isinstance(encoder, ImageEncoder) for encoder in encoders):
                raise ConfigError(
                    f"model.channels_last is for pictures, and the encoder {type(encoders[0]).__name__} reads none; leave it out"
                )
            self.to(memory_format=torch.channels_last)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        padding: Tensor | None = None,
        rows: Mapping[str, Tensor] | None = None,
        tasks: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Raw predictions.

        The architecture runs once for every input that a task reads, for all of its tasks together.

        Args:
            inputs: ``image`` [B, C, H, W] in 0..1, ``text`` int64 [B, L] token ids, or several under names of their own.
            padding: bool [B, H, W], True where a picture was filled up.
            rows: bool [B] by input: the rows to run, heads included; those of an input that is not here all are. What is
                predicted for the other rows is 0.
            tasks: those to predict; None is all.

        Returns:
            Per task [B, channels], or [B, channels, H, W] from dense heads.
        """
        found: dict[str, Tensor] = {}
        for read, names in self.read_by(inputs, tasks).items():
            source = self._source(inputs[read], padding)
            if rows is None or read not in rows:
                found |= self._heads(self.architecture(source, names), inputs[read])
            else:
                found |= self._some(source, rows[read], names)
        return {name: found[name] for name in self.heads if name in found}

    def read_by(self, inputs: Iterable[str], tasks: Collection[str] | None = None) -> dict[str, list[str]]:
        """The tasks that read each of the inputs.

        Args:
            inputs: names.
            tasks: those to look at; None is all.

        Raises:
            ConfigError: it is not said which of several inputs a task reads, or there is no such input.
        """
        return readers([name for name in self.heads if tasks is None or name in tasks], self.inputs, inputs)

    def only_input(self) -> str:
        """The one input that all tasks read.

        Raises:
            ConfigError: they read several.
        """
        read = {self.inputs.get(name, IMAGE): name for name in self.heads}
        if len(read) > 1:
            listing = ", ".join(f"{name} reads {source}" for source, name in read.items())
            raise ConfigError(f"the model has several inputs ({listing}), and here it can take one; choose tasks of one input")
        return next(iter(read))

    def features(self, inputs: Mapping[str, Tensor], padding: Tensor | None = None) -> dict[str, list[Features]]:
        """What every task's head reads, where all tasks read one input; arguments as in :meth:`forward`.

        Raises:
            ConfigError: tasks read several inputs, and so have no features in common.
        """
        read = self.read_by(inputs)
        if len(read) > 1:
            raise ConfigError(
                f"model.engine.gradients is features, but tasks read several inputs ({', '.join(read)}) and have no features "
                "in common; set it to parameters"
            )
        name = next(iter(read))
        found = self.architecture(self._source(inputs[name], padding), read[name])
        return {name: found[name] for name in self.heads}

    def predict(self, features: Mapping[str, list[Features]], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the heads make of :meth:`features`, dense predictions in the size of the input."""
        return self._heads(features, inputs[next(iter(self.read_by(inputs)))])

    def _heads(self, features: Mapping[str, list[Features]], tensor: Tensor) -> dict[str, Tensor]:
        shape = tensor.shape
        size = (shape[-2], shape[-1]) if len(shape) > 2 else (1, shape[-1])
        return {name: cast(Head, self.heads[name])(pyramid, size) for name, pyramid in features.items()}

    def _some(self, source: Features, rows: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Predictions of some rows, spread over all of them."""
        places = torch.nonzero(rows).flatten()
        # One row at least: processes wait for each other's gradients. Neither batch norm nor the means of gates keep it.
        some = places if len(places) else places.new_zeros(1)
        # And a copy of a single one: of a map of one cell batch norm could take no variance.
        run = some.repeat(2) if self.training and len(some) == 1 else some
        with ExitStack() as stack:
            for leave_no_trace in () if len(places) else (still, unseen):
                stack.enter_context(leave_no_trace(self))
            found = self._heads(self.architecture(source.take(run), tasks), source.tensor)

        def spread(value: Tensor) -> Tensor:
            return value.new_zeros(len(rows), *value.shape[1:]).index_copy(0, some, value[: len(some)])

        return {name: spread(value) for name, value in found.items()}

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """Each parameter and the tasks that use it, heads included."""
        owners = self.architecture.owners()
        for name, head in self.heads.items():
            owners |= dict.fromkeys(head.parameters(), frozenset({name}))
        return owners

    def _source(self, tensor: Tensor, padding: Tensor | None) -> Features:
        if self.channels_last and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return Features(tensor, None if padding is None else (~padding).unsqueeze(1).to(tensor.dtype))
