"""Where heads read the trunk: features cut from it, so that each head runs backward alone and the trunk once. Pure torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features
from mtl_lightning.gradients.held import Gradients, derivative
from mtl_lightning.gradients.rows import combine, gramian_of
from mtl_lightning.objective import block_of_rows


class Cut:
    """Copies of the common features for each task, which take the gradients of its loss.

    Args:
        features: each task's pyramid; the same for all.

    Raises:
        ConfigError: tasks with features of their own.
    """

    def __init__(self, features: Mapping[str, Sequence[Features]]) -> None:
        common = next(iter(features.values()))
        if any(pyramid is not common for pyramid in features.values()):
            raise ConfigError("model.engine.gradients features needs an architecture that gives all tasks the same features")
        tensors = [tensor for level in common for tensor in (level.tensor, level.token) if tensor is not None]
        self.sources = [tensor for tensor in tensors if tensor.requires_grad]
        self.leaves: dict[str, list[Tensor]] = {}
        self.features: dict[str, list[Features]] = {}
        self._taken: list[dict[int, Tensor]] = [{} for _ in self.sources]
        self._rows: list[Tensor] = []
        for name in features:
            mine = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
            self.leaves[name] = [tensor for tensor in mine if tensor.requires_grad]
            left = iter(mine)
            self.features[name] = [
                replace(level, tensor=next(left), token=None if level.token is None else next(left)) for level in common
            ]

    def take(self, row: int, gradients: Sequence[Tensor | None]) -> None:
        """Take a task's gradients.

        Args:
            row: its place among the present tasks.
            gradients: of its leaves; None where its head does not read them.
        """
        for taken, gradient in zip(self._taken, gradients, strict=True):
            if gradient is not None:
                taken[row] = gradient.flatten()

    def gramian(self, size: int) -> Tensor:
        """Scalar products of this process's gradients of the ``size`` present tasks: float64 [P, P]."""
        total = torch.zeros(size, size, dtype=torch.float64, device=self.sources[0].device)
        for taken, rows in zip(self._taken, self._stacked(), strict=True):
            if taken:
                places = torch.tensor(list(taken), device=rows.device)
                total[places[:, None], places] += gramian_of(rows)
        return total

    def block_norms(self, size: int, blocks: int, world: int, rank: int) -> Tensor:
        """Squared norms of this process's gradients in each block of rows of the batch: float64 [size, blocks].

        Args:
            size: of the present tasks.
            blocks: into how many the global batch is cut.
            world: number of processes.
            rank: this one.
        """
        total = torch.zeros(size, blocks, dtype=torch.float64, device=self.sources[0].device)
        for source, taken, rows in zip(self.sources, self._taken, self._stacked(), strict=True):
            if taken:
                place = block_of_rows(len(source), blocks, world, rank).to(rows.device)
                squares = rows.view(len(taken), len(source), -1).double().square().sum(2)
                found = squares.new_zeros(len(taken), blocks).index_add_(1, place, squares)
                total[list(taken)] += found
        return total

    def _stacked(self) -> list[Tensor]:
        if not self._rows:
            for source, taken in zip(self.sources, self._taken, strict=True):
                rows = torch.stack(list(taken.values())) if taken else source.new_empty(0, source.numel())
                self._rows.append(rows.to(torch.promote_types(rows.dtype, torch.float32)))
                taken.update(dict.fromkeys(taken, rows[:0]))
        return self._rows

    def trunk(self, weights: Mapping[int, float], parameters: Sequence[nn.Parameter]) -> Gradients:
        """One backward pass of the trunk with the weighted sum of the gradients taken.

        Args:
            weights: by the tasks' places; the others count 0.
            parameters: of the trunk.
        """
        sources, combined = [], []
        for source, taken, rows in zip(self.sources, self._taken, self._stacked(), strict=True):
            chosen = [index for index, row in enumerate(taken) if row in weights]
            if chosen:
                factors = rows.new_tensor([weights[row] for row in taken if row in weights])
                found = combine(factors, rows if len(chosen) == len(taken) else rows[chosen])
                sources.append(source)
                combined.append(found.view_as(source).to(source.dtype))
        self._rows = []
        return derivative(sources, parameters, combined, False)
