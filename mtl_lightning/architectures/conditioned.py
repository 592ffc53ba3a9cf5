"""One shared trunk that is told which task it works for."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_lightning.architectures.base import Table
from mtl_lightning.architectures.cells import joined, parted
from mtl_lightning.architectures.one_trunk import OneTrunk
from mtl_lightning.architectures.parts import belong, numbered, staged
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec, pool


class TaskConditioned(OneTrunk):
    """A shared trunk conditioned by a learnt embedding of each task, in one of two ways or in both.

    FiLM (E. Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018): behind each stage named in
    ``film`` every channel becomes gamma * x + beta; a linear layer for each of these stages, shared by all tasks, makes gamma
    and beta of the embedding. They start as the identity. Perez et al. condition inside residual blocks, on a question; here
    it is at the end of stages (and on the class token), on the task.

    Concatenation: the embedding e stands behind the channels of the last level's features f in each cell (and behind the
    class token), scaled to a given share of the length of the global feature: ratio * |pool(f)| * e / |e|, for each row. So
    ``ratio`` says how much it counts beside the features, whatever their size.

    The encoder and the linear layers are shared by all tasks; each embedding is its task's own. They add width numbers a task,
    and for FiLM 2 (width + 1) C shared ones for each stage of C channels. Concatenation and FiLM at the last stage cost next to
    nothing: the trunk runs once. FiLM before the last stage makes the stages behind the first conditioned one run once for each
    task that is asked for, one task after the other, with batch statistics of each task's own: with FiLM behind stage 1 that is
    nearly a trunk a task in time and memory, though not in weights. With three tasks and a ResNet-18 (64 x 64 pixels, 16 rows,
    CPU) a step takes 2.3 times that of hard sharing, and 1.7 times with FiLM behind stage 4 of 5.

    A head of a single layer sees a concatenated embedding as one more bias (in proportion to |pool(f)|), and FiLM at the last
    stage as another scale of its weights. Take heads with a hidden layer, or FiLM before the last stage.

    Args:
        encoder: the trunk.
        tasks: names.
        film: stages behind which features are scaled and shifted, counted from 1; null is nowhere.
        concatenate: whether the embedding is put behind the last level's channels.
        ratio: the embedding's length there over that of the global feature, > 0.
        width: of the embeddings, >= 2.

    Raises:
        ConfigError: stages that are not there, numbers out of their range, or neither FiLM nor concatenation.
    """

    shards = True

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[str],
        film: list[int] | None = None,
        concatenate: bool = True,
        ratio: float = 1.0,
        width: int = 16,
    ) -> None:
        name = type(self).__name__
        levels = [] if film is None else numbered(name, "film", film, encoder)
        if not levels and not concatenate:
            raise ConfigError(
                "model.architecture.init_args: film is null and concatenate is false, so that no task is told apart; name stages "
                "in film, set concatenate to true, or take HardSharing"
            )
        if width < 2 or not 0 < ratio < float("inf"):
            raise ConfigError(
                f"model.architecture.init_args: width is {width} and ratio {ratio}, expected a width >= 2 and a ratio > 0"
            )
        super().__init__(encoder, tasks, levels[0] + 1 if levels else len(staged(name, encoder)))
        self.concatenate, self.ratio, self.width = concatenate, ratio, width
        self.embeddings = nn.ParameterDict({task: nn.Parameter(torch.randn(width)) for task in tasks})
        self.film = nn.ModuleDict({str(level): nn.Linear(width, 2 * encoder.specs[level].channels) for level in levels})
        for generator in self.film.values():
            nn.init.zeros_(generator.weight)  # type: ignore[arg-type]
            nn.init.zeros_(generator.bias)  # type: ignore[arg-type]

    def branch(self, task: str, start: Features, common: Sequence[Features]) -> list[Features]:
        """Conditioned stages, then the embedding behind the last level's channels."""
        pyramid = super().branch(task, start, common)
        return [*pyramid[:-1], self._concatenated(task, pyramid[-1])] if self.concatenate else pyramid

    def adapt(self, task: str, level: int, features: Features) -> Features:
        """FiLM, where there is some."""
        if str(level) not in self.film:
            return features
        change, shift = self.film[str(level)](self.embeddings[task]).to(features.tensor.dtype)[:, None, None].chunk(2)
        return parted(joined(features) * (1 + change) + shift, features)

    def _concatenated(self, task: str, features: Features) -> Features:
        direction = F.normalize(self.embeddings[task], dim=0) * self.ratio

        def with_embedding(tensor: Tensor, summary: Tensor) -> Tensor:
            length = torch.linalg.vector_norm(summary, dim=1, keepdim=True)
            row = (length * direction).to(tensor.dtype)
            return torch.cat([tensor, row.view(*row.shape, *([1] * (tensor.ndim - 2))).expand(-1, -1, *tensor.shape[2:])], 1)

        token = None if features.token is None else with_embedding(features.token, features.token)
        cells = features.like(with_embedding(features.tensor, pool(features)))
        return Features(cells.tensor, cells.valid, token)

    def specs(self, task: str) -> list[FeatureSpec]:
        """The encoder's; the last level has the embedding's channels more where it is concatenated."""
        *first, last = self.encoder.specs
        extra = self.width if self.concatenate else 0
        return [*first, FeatureSpec(last.channels + extra, last.stride, last.layout, last.token)]

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """Each embedding belongs to its task, everything else to all."""
        owners: dict[nn.Parameter, frozenset[str]] = {}
        belong(owners, [self.encoder, self.film], self.tasks)
        return owners | {embedding: frozenset({task}) for task, embedding in self.embeddings.items()}

    def tables(self) -> dict[str, Table]:
        """``film``: how far gamma is from 1, as root mean square over channels, tasks x stages."""
        if not self.film:
            return {}
        with torch.no_grad():
            rows = []
            for task in self.tasks:
                changes = [generator(self.embeddings[task]).chunk(2)[0] for generator in self.film.values()]
                rows.append(torch.stack([change.square().mean().sqrt() for change in changes]))
        return {"film": Table(list(self.tasks), [f"stage {int(level) + 1}" for level in self.film], torch.stack(rows))}
