"""What is seen of the tasks' gradients: norms, cosines, and how often they conflict. Pure torch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def lengths(gramian: Tensor) -> Tensor:
    """Norms of the gradients: [P]."""
    return gramian.diagonal().clamp_min(0).sqrt()


def cosines(gramian: Tensor) -> Tensor:
    """Cosines of the angles between gradients: [P, P], 0 where a gradient is 0.

    Args:
        gramian: [P, P], scalar products of the gradients.
    """
    norms = lengths(gramian)
    unit = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    return (gramian * unit[:, None] * unit).clamp(-1, 1)


class ConflictMeter(nn.Module):
    """Means of norms and cosines over the observed steps of an epoch, and the share of those with a conflict.

    Two tasks conflict in a step in which the cosine of their gradients is negative (Yu et al., "Gradient Surgery for Multi-Task
    Learning", NeurIPS 2020). State is in buffers, so that a resumed epoch's means are those of the whole epoch.

    Args:
        tasks: names.
    """

    norm_sum: Tensor
    cosine_sum: Tensor
    together: Tensor
    latest: Tensor
    latest_seen: Tensor
    steps: Tensor
    conflicting: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks, size = list(tasks), len(tasks)
        self.register_buffer("norm_sum", torch.zeros(size))
        for name in ("cosine_sum", "together"):
            self.register_buffer(name, torch.zeros(size, size))
        self.register_buffer("latest", torch.zeros(size, size))
        self.register_buffer("latest_seen", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("conflicting", torch.zeros(()))

    def add(self, gramian: Tensor, present: Sequence[int]) -> None:
        """Count a step.

        Args:
            gramian: float64 [P, P] on the CPU.
            present: positions of its tasks.
        """
        if not present:
            return
        found = cosines(gramian)
        places = torch.tensor(list(present), device=self.steps.device)
        grid = (places[:, None], places[None, :])
        moved = found.to(self.cosine_sum)
        self.latest[grid] = gramian.to(self.latest)
        self.latest_seen.zero_()
        self.latest_seen[places] = True
        self.norm_sum[places] += lengths(gramian).to(self.norm_sum)
        self.cosine_sum[grid] += moved
        self.together[grid] += 1
        self.steps += 1
        self.conflicting += float((found < 0).any())

    def step_record(self) -> dict[str, float]:
        """The last observed step for the log."""
        present = self.latest_seen.nonzero()[:, 0].tolist()
        gramian = self.latest[present][:, present]
        found, norms = cosines(gramian).tolist(), lengths(gramian).tolist()
        record = {f"gradient/norm/{self.tasks[task]}": norms[i] for i, task in enumerate(present)}
        for i, first in enumerate(present):
            for j, second in enumerate(present[:i]):
                record[f"gradient/cosine/{self.tasks[second]}/{self.tasks[first]}"] = found[i][j]
        return record

    def epoch_record(self) -> dict[str, float]:
        """The epoch's means for the log; nothing where no step was observed."""
        if not float(self.steps):
            return {}
        record = {"train/gradient/conflicts": float(self.conflicting / self.steps)}
        means = (self.cosine_sum / self.together.clamp_min(1)).tolist()
        seen = self.together.tolist()
        for i, name in enumerate(self.tasks):
            if seen[i][i]:
                record[f"train/gradient/norm/{name}"] = float(self.norm_sum[i] / self.together[i, i])
            for j in range(i):
                if seen[i][j]:
                    record[f"train/gradient/cosine/{self.tasks[j]}/{name}"] = means[i][j]
        return record

    def reset(self) -> None:
        """Start a new epoch; the last step stays."""
        for buffer in (self.norm_sum, self.cosine_sum, self.together, self.steps, self.conflicting):
            buffer.zero_()
