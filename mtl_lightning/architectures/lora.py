"""Low-rank changes of a shared trunk's weights for each task."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mtl_lightning.architectures.base import Table
from mtl_lightning.architectures.one_trunk import OneTrunk
from mtl_lightning.architectures.parts import belong, numbered
from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.errors import ConfigError


class Update(nn.Module):
    """B A * alpha / rank in the shape of a weight; 0 at the start.

    Args:
        weight: [out, …], as a matrix [out, the rest].
        rank: of the update.
        alpha: its scale times the rank.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale, self.shape = alpha / rank, weight.shape
        self.a = nn.Parameter(weight.new_empty(rank, weight[0].numel()))
        self.b = nn.Parameter(weight.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self) -> Tensor:
        """The update."""
        return ((self.b @ self.a) * self.scale).view(self.shape)


class LoRA(OneTrunk):
    """Low-rank adaptation (E. J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022) of a trunk, a task.

    Every weight W [out, in] of linear layers, convolutions (as [out, in * height * width]) and attention projections in the
    chosen stages becomes W + B A * alpha / rank, with A [rank, in] and B [out, rank] of each task; B starts at zero, where
    every task's pyramid is the trunk's. The trunk may learn, or be frozen (``model.freeze``), as Hu et al. have it.

    The encoder is shared by all tasks, A and B are their task's own: rank * (in + out) weights for each W. The stages before
    the first adapted one run once, those from it on once for each task that is asked for, in time and memory of backward passes
    too, with batch statistics of each task's own. W + B A is made anew in each pass. Of a ResNet-18 rank 4 is 1.3 % a
    task; a step of three tasks (64 x 64 pixels, 16 rows, CPU) takes 3.4 times that of hard sharing, and 2.2 times with the last
    two stages alone.

    Where ours differs: Hu et al. adapt attention's projections of queries and values with a matrix each; ours adapts all weights
    of a stage, and projections that the encoder holds in one matrix with one update. Embeddings, recurrent layers, norms
    and biases stay the trunk's.

    Args:
        encoder: the trunk.
        tasks: names.
        rank: of the updates, >= 1.
        alpha: they are scaled by alpha / rank, > 0; null is the rank.
        stages: those whose weights are adapted, counted from 1; null is all that have such weights.

    Raises:
        ConfigError: numbers out of their range, stages that are not there, or one that has no such weights.
    """

    def __init__(
        self, encoder: Encoder, tasks: Sequence[str], rank: int = 4, alpha: float | None = None, stages: list[int] | None = None
    ) -> None:
        if rank < 1 or (alpha is not None and not 0 < alpha < float("inf")):
            raise ConfigError(
                f"model.architecture.init_args: rank is {rank} and alpha {alpha}, expected a rank >= 1 and an alpha > 0 (or null)"
            )
        chosen = numbered(type(self).__name__, "stages", stages, encoder)
        found = {level: matrices(encoder.stages[level]) for level in chosen}
        without = [level + 1 for level, weights in found.items() if not weights]
        if without and (stages is not None or len(without) == len(chosen)):
            raise ConfigError(
                f"model.architecture.init_args.stages: stage {', '.join(map(str, without))} of {type(encoder).__name__} has no "
                "linear layer, convolution or attention that LoRA could adapt; name others, or take TaskAdapters"
            )
        adapted = {level: weights for level, weights in found.items() if weights}
        super().__init__(encoder, tasks, min(adapted))
        self._paths = {level: [(path, path.replace(".", "_")) for path in weights] for level, weights in adapted.items()}
        scale = float(rank) if alpha is None else alpha

        def updates(weights: dict[str, nn.Parameter]) -> nn.ModuleDict:
            return nn.ModuleDict({path.replace(".", "_"): Update(weight, rank, scale) for path, weight in weights.items()})

        self.updates = nn.ModuleDict(
            {task: nn.ModuleDict({str(level): updates(weights) for level, weights in adapted.items()}) for task in tasks}
        )
        for level in adapted:
            stage: Stage = encoder.stages[level]  # type: ignore[assignment]
            stage.adapted = True

    def weights(self, task: str, level: int) -> dict[str, Tensor]:
        """The stage's weights with the task's updates."""
        stage: Stage = self.encoder.stages[level]  # type: ignore[assignment]
        found = {}
        for path, name in self._paths.get(level, []):
            weight = stage.get_parameter(path)
            found[path] = (weight.detach() if stage.frozen else weight) + self._update(task, level, name)
        return found

    def _update(self, task: str, level: int, name: str) -> Tensor:
        update: Tensor = self.updates[task][str(level)][name]()  # type: ignore[index]
        return update

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """The encoder belongs to all tasks, updates to their task."""
        owners: dict[nn.Parameter, frozenset[str]] = {}
        belong(owners, [self.encoder], self.tasks)
        for task, updates in self.updates.items():
            belong(owners, [updates], [task])
        return owners

    def tables(self) -> dict[str, Table]:
        """``updates``: their size over that of the weights, tasks x stages."""
        rows = []
        with torch.no_grad():
            for task in self.tasks:
                row = []
                for level, paths in self._paths.items():
                    stage: Stage = self.encoder.stages[level]  # type: ignore[assignment]
                    change = torch.stack([self._update(task, level, name).square().sum() for _, name in paths]).sum()
                    row.append(
                        (change / torch.stack([stage.get_parameter(path).square().sum() for path, _ in paths]).sum()).sqrt()
                    )
                rows.append(torch.stack(row))
        return {"updates": Table(list(self.tasks), [f"stage {level + 1}" for level in self._paths], torch.stack(rows))}


def matrices(stage: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of linear layers, convolutions and attention projections by their paths."""
    found = {}
    for path, module in stage.named_modules():
        if isinstance(module, nn.Linear | _ConvNd | nn.MultiheadAttention):
            direct = module.named_parameters(path, recurse=False)
            found.update({name: weight for name, weight in direct if weight.ndim > 1 and not name.endswith(("bias_k", "bias_v"))})
    return found
