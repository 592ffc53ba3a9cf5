"""The network itself: pure torch, to be used and exported without Lightning."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from mtl_lightning.architectures.base import Architecture
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features
from mtl_lightning.heads.base import Head
from mtl_lightning.tasks.base import Task


class MultiTaskModel(nn.Module):
    """Encoder and architecture with a head for each task.

    Args:
        tasks: names and kinds; each builds its head.
        architecture: from inputs to each task's features.
        inputs: which of several inputs a task reads; not needed where there is one.
    """

    def __init__(self, tasks: Mapping[str, Task], architecture: Architecture, inputs: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.inputs = dict(inputs or {})
        self.heads = nn.ModuleDict({name: task.build_head(architecture.specs(name)) for name, task in tasks.items()})

    def forward(
        self, inputs: Mapping[str, Tensor], padding: Tensor | None = None, rows: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Every task's raw prediction.

        Args:
            inputs: ``image`` [B, C, H, W] in 0..1, ``text`` int64 [B, L] token ids, or several under names of their own.
            padding: bool [B, H, W], True where a picture was filled up.
            rows: bool [B] by input: the rows whose features are needed; those of an input that is not here all are. Only
                looked at where there are several inputs. What is predicted for the other rows means nothing.

        Returns:
            Per task [B, channels], or [B, channels, H, W] from dense heads.
        """
        return self.predict(self.features(inputs, padding, rows), inputs)

    def read_by(self, inputs: Mapping[str, object]) -> dict[str, list[str]]:
        """The tasks that read each of the inputs.

        Raises:
            ConfigError: it is not said which of several inputs a task reads, or there is no such input.
        """
        found: dict[str, list[str]] = {}
        for name in self.heads:
            read = next(iter(inputs)) if len(inputs) == 1 else self.inputs.get(name)
            if read is None or read not in inputs:
                said = "is not set" if read is None else f"is {read}"
                raise ConfigError(f"model.inputs.{name} {said}, expected one of the inputs of the data: {', '.join(inputs)}")
            found.setdefault(read, []).append(name)
        return found

    def features(
        self, inputs: Mapping[str, Tensor], padding: Tensor | None = None, rows: Mapping[str, Tensor] | None = None
    ) -> dict[str, list[Features]]:
        """What every task's head reads; arguments as in :meth:`forward`."""
        found: dict[str, list[Features]] = {}
        for read, tasks in self.read_by(inputs).items():
            tensor = inputs[read]
            source = Features(tensor, None if padding is None else (~padding).unsqueeze(1).to(tensor.dtype))
            if len(inputs) == 1 or rows is None or read not in rows:
                found |= self.architecture(source, tasks)
                continue
            # One row at least: normalisation, and processes that wait for each other's gradients, want to see something.
            places = torch.nonzero(rows[read]).flatten() if bool(rows[read].any()) else torch.zeros(1, dtype=torch.long)
            places = places.to(tensor.device)
            pyramids = self.architecture(source.take(places), tasks)
            found |= {name: [level.put(places, len(tensor)) for level in pyramid] for name, pyramid in pyramids.items()}
        return {name: found[name] for name in self.heads}

    def predict(self, features: Mapping[str, list[Features]], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the heads make of it, dense predictions in the size of the inputs."""
        sizes: dict[str, tuple[int, int]] = {}
        for read, tasks in self.read_by(inputs).items():
            shape = inputs[read].shape
            sizes |= dict.fromkeys(tasks, (shape[-2], shape[-1]) if len(shape) > 2 else (1, shape[-1]))
        return {name: cast(Head, head)(features[name], sizes[name]) for name, head in self.heads.items()}

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """Each parameter and the tasks that use it, heads included."""
        owners = self.architecture.owners()
        for name, head in self.heads.items():
            owners |= dict.fromkeys(head.parameters(), frozenset({name}))
        return owners
