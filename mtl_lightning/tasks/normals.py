"""The direction of the surface at every pixel."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torchmetrics import MetricCollection

from mtl_lightning.batch import Kind, TargetSpec
from mtl_lightning.features import FeatureSpec
from mtl_lightning.frame import Frame
from mtl_lightning.heads.base import Head
from mtl_lightning.heads.unet import UNet
from mtl_lightning.metrics.normals import NormalScores
from mtl_lightning.tasks.base import Count, HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.drawing import no_label, show_image
from mtl_lightning.tasks.results import NormalMap, Result

UNLABELLED = 0.6
TINY = 1e-6
"""A target shorter than this has no direction: no label."""
SHORT = 1e-2
"""Shorter predictions are divided by this and not by their length, which bounds the gradient at the zero vector."""


def unit(vectors: Tensor, dim: int, floor: float) -> Tensor:
    """Vectors divided by the larger of their length and ``floor``; the gradient is finite everywhere."""
    return vectors / vectors.square().sum(dim, keepdim=True).clamp_min(floor**2).sqrt()


class SurfaceNormals(Task):
    """A unit vector for every pixel; the target is float [3, H, W], zero or NaN where there is no label.

    The loss is 1 - cosine between target and prediction, of whose length nothing is asked (below 0.01 it is taken for 0.01).

    Args:
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes the U-Net decoder.
    """

    kind: ClassVar[Kind] = "normals"
    meaning: ClassVar[str] = "unit vector of every pixel, x to the right, y up, z to the viewer [B, 3, H, W]"
    terms = ("cosine",)
    mean: Tensor

    def __init__(self, weight: float = 1.0, auxiliary: bool = False, head: HeadFactory | None = None) -> None:
        super().__init__(weight, auxiliary, head)
        self.measures = {"mean": Measure(False, 0.0, "°"), "median": Measure(False, 0.0, "°")}
        self.measures |= {f"within_{limit}": Measure(True, 1.0) for limit in ("11_25", "22_5", "30")}
        self.register_buffer("mean", torch.tensor([0.0, 0.0, 1.0]), persistent=False)

    @property
    def channels(self) -> int:
        """Three."""
        return 3

    @property
    def target(self) -> TargetSpec:
        """A map of normals."""
        return TargetSpec("normals", (3,), torch.float32, 0.0)

    def default_head(self, specs: Sequence[FeatureSpec]) -> Head:
        """The U-Net decoder."""
        return UNet(specs, self.channels)

    def learn(self, targets: Iterable[Tensor]) -> None:
        """Learn the mean direction of the labelled pixels, the constant with the least loss (z where they cancel out)."""
        total = torch.zeros(3, dtype=torch.float64)
        for target in targets:
            vectors = target.double().cpu().flatten(1)
            vectors = vectors[:, _known(vectors, 0)]
            total += unit(vectors, 0, TINY).sum(1)
        if total.norm() < TINY:
            total = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        self.mean.copy_(total / total.norm())

    def facts(self) -> dict[str, Any]:
        """The mean direction."""
        return {"mean": self.mean.tolist()}

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over the mean direction."""
        self.mean.copy_(torch.tensor(facts["mean"]))

    def check(self, target: Tensor, where: str) -> None:
        """Refuse what is no map of unit vectors."""
        if target.ndim != 3 or target.shape[0] != 3:
            self.fail(where, f"the normals have shape {tuple(target.shape)}, expected [3, height, width]")
        if target.isinf().any():
            self.fail(where, "the normals have infinite pixels; write zero or NaN for pixels without a label")
        lengths = target.float().norm(dim=0)[_known(target, 0)]
        if lengths.numel() and not (lengths.min() >= 0.9 and lengths.max() <= 1.1):
            self.fail(
                where,
                f"the normals have lengths from {lengths.min():.3g} to {lengths.max():.3g}, expected 1 (0.9 to 1.1 by rounding), "
                "or zero for pixels without a label; scale them (2 * value / 255 - 1 if they were stored as 8-bit colours)",
            )

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """``cosine``: 1 - cosine, over labelled pixels."""
        valid = self._valid(target, labelled)
        predicted = unit(torch.where(valid, at_least_float32(prediction), 0.0), 1, SHORT)
        true = unit(torch.where(valid, target.to(predicted), 0.0), 1, TINY)
        cosine = (predicted * true).sum(1, keepdim=True)
        return {"cosine": Term(torch.where(valid, 1 - cosine, 0.0).sum(), valid.sum().float())}

    @staticmethod
    def _valid(target: Tensor, labelled: Tensor) -> Tensor:
        return _known(target, 1).unsqueeze(1) & labelled.view(-1, 1, 1, 1)

    def metrics(self) -> MetricCollection:
        """``mean``, ``median``, ``within_11_25``, ``within_22_5``, ``within_30`` and ``count`` (of pixels)."""
        return MetricCollection({"scores": NormalScores(), "count": Count()}, compute_groups=False)

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors [N, 3] of the labelled pixels, predicted and true."""
        valid = self._valid(target, labelled)[:, 0]
        predicted, true = (tensor.float().movedim(1, -1)[valid] for tensor in (prediction, target))
        return unit(predicted, 1, TINY), unit(true, 1, TINY)

    def trivial(self, target: Tensor) -> Tensor:
        """The mean direction at every pixel."""
        return self.mean.to(target.device).view(1, 3, 1, 1).expand(target.shape)

    def decode(self, prediction: Tensor) -> list[Any]:
        """Unit vectors [3, H, W] per row."""
        return list(unit(prediction.detach().float(), 1, TINY).cpu())

    def interpret(self, prediction: Tensor) -> Tensor:
        """Unit vectors [B, 3, H, W]."""
        return unit(at_least_float32(prediction), 1, TINY)

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """The map of normals."""
        return NormalMap(value.movedim(0, -1).contiguous().numpy())

    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """x, y, z as red, green, blue; grey where there is no label."""
        if prediction is not None:
            return show_image(axes, unit(prediction.detach().float(), 0, TINY) / 2 + 0.5)
        if target is None:
            return no_label(axes, image)
        return show_image(axes, torch.where(_known(target, 0), target / 2 + 0.5, UNLABELLED))


def _known(target: Tensor, dim: int) -> Tensor:
    length = target.square().sum(dim)
    return length.isfinite() & (length >= TINY**2)
