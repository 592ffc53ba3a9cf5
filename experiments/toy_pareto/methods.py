"""A weighting method on a plain point of two numbers, without a network."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from problem import Array, objectives
from torch import Tensor, nn

from mtl_lightning import weighting as w
from mtl_lightning.weighting import TaskInfo, Weighting

EPOCH = 100
"""Steps that methods with epochs (DWA, STCH) take for one."""
EVERY = torch.arange(2)
METHODS: dict[str, Callable[[], Weighting]] = {
    "Equal": w.Equal,
    "UW": w.UW,
    "DWA": w.DWA,
    "RLW": w.RLW,
    "ScaleInvariant": w.ScaleInvariant,
    "GLS": w.GLS,
    "CoV": w.CoV,
    "IMTLL": w.IMTLL,
    "STCH": w.STCH,
    "FAMO": w.FAMO,
    "GO4Align": w.GO4Align,
    "AutoLambda": w.AutoLambda,
    "GradNorm": w.GradNorm,
    "MGDA": w.MGDA,
    "PCGrad": w.PCGrad,
    "GradVac": w.GradVac,
    "CAGrad": w.CAGrad,
    "GradDrop": w.GradDrop,
    "IMTLG": w.IMTLG,
    "IMTL": w.IMTL,
    "NashMTL": w.NashMTL,
    "FairGrad": w.FairGrad,
    "AlignedMTL": w.AlignedMTL,
    "UPGrad": w.UPGrad,
    "DualProj": w.DualProj,
    "ConFIG": w.ConFIG,
    "DBMTL": w.DBMTL,
    "MoCo": w.MoCo,
    "MoDo": w.MoDo,
    "SDMGrad": w.SDMGrad,
    "ExcessMTL": w.ExcessMTL,
    "NTKMTL": w.NTKMTL,
}
"""All of the package with their defaults, but Fixed and DataSize (here Equal), NTKMTLSR (no features), TorchJD (not ours)."""


class PointProbe:
    """What methods with further batches may try: there is no noise, every batch is the same.

    Args:
        point: [2], the parameter.
        scale: of the first objective.
        lr: the step's.
    """

    def __init__(self, point: Tensor, scale: float, lr: float) -> None:
        self.parameters: Sequence[nn.Parameter] = [nn.Parameter(point.clone())]
        self.scale, self.lr = scale, lr

    def _look(self) -> tuple[Tensor, Tensor]:
        values, gradients = objectives(self.parameters[0].detach().numpy(), self.scale)
        return torch.from_numpy(values), torch.from_numpy(gradients)

    def losses(self, batch: int) -> tuple[Tensor, Tensor]:
        """At the point as it is now."""
        return self._look()[0], EVERY

    def gradient(self, batch: int, weights: Tensor) -> list[Tensor]:
        """Of the weighted sum."""
        return [self._look()[1].T @ weights.double()]

    def jacobian(self, batch: int) -> tuple[Tensor, Tensor]:
        """Of both."""
        return self._look()[1], EVERY


class Run:
    """One method from one start.

    Args:
        method: the method.
        scale: of the first objective.
        lr: of the point.
    """

    def __init__(self, method: Weighting, scale: float, lr: float) -> None:
        self.method, self.scale, self.lr = method, scale, lr
        method.prepare([TaskInfo("first"), TaskInfo("second")])
        self.from_losses, self.from_gradients = method.from_losses, method.from_gradients
        if self.from_gradients is not None and self.from_gradients.needs_rows:
            self.from_gradients.allocate(2, torch.float64)
        self.learns = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self._total, self._epoch = torch.zeros(2), 0
        self.revisits = False
        self._before = torch.zeros(2)

    def direction(self, point: Array, values: Array, jacobian: Array) -> Array:
        """The gradient to go down, and the gradients of what the method learns.

        Args:
            point: [2].
            values: [2], the objectives there.
            jacobian: [2, 2], their gradients in rows.
        """
        losses, rows = torch.from_numpy(values), torch.from_numpy(jacobian)
        if self.method.extra_batches:
            self.method.explore(PointProbe(torch.from_numpy(point), self.scale, self.lr))
        self.revisits, self._before = self.method.revisit() > 0, losses
        self._count(losses)
        if self.from_losses is not None:
            weights = self.from_losses(losses, EVERY)
            if self.learns:
                penalty = self.from_losses.penalty(EVERY)
                objective = (weights * losses).sum() + (0 if penalty is None else penalty)
                for parameter, gradient in zip(self.learns, torch.autograd.grad(objective, self.learns), strict=True):
                    parameter.grad = gradient
                weights = weights.detach()
            rows, losses = rows * weights.double()[:, None], losses * weights
        if self.from_gradients is None:
            return np.asarray(rows.sum(0).numpy())
        if self.from_gradients.needs_rows:
            rows = self.from_gradients.rows(rows, losses, EVERY)
        found = self.from_gradients(rows @ rows.T, losses, EVERY)
        return np.asarray((found @ rows).numpy())

    def after(self, values: Array) -> None:
        """The objectives after the step, for a method that asked."""
        self.method.revisited(self._before, torch.from_numpy(values), EVERY)

    def _count(self, losses: Tensor) -> None:
        if self._epoch == EPOCH:
            self.method.epoch_end((self._total / EPOCH).float(), torch.ones(2, dtype=torch.bool))
            self._total, self._epoch = torch.zeros(2), 0
        self._total, self._epoch = self._total + losses, self._epoch + 1
