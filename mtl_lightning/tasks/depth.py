"""A distance for every pixel."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor
from torchmetrics import MetricCollection

from mtl_lightning.batch import Kind, TargetSpec
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import FeatureSpec
from mtl_lightning.frame import Frame
from mtl_lightning.heads.base import Head
from mtl_lightning.heads.unet import UNet
from mtl_lightning.metrics.depth import DepthScores
from mtl_lightning.tasks.base import Count, HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.drawing import no_label, show_image
from mtl_lightning.tasks.results import DepthMap, Result

LN2 = math.log(2)
UNLABELLED = 0.6
FRACTION_BITS = 10
"""Bits of a float32's fraction that the median's histogram tells apart: bins are at most 0.1 % wide."""


def silog(prediction: Tensor, target: Tensor, valid: Tensor) -> Term:
    """Scale-invariant logarithmic error per image (D. Eigen, C. Puhrsch, R. Fergus, NeurIPS 2014).

    mean(d²) - 0.5 * mean(d)² with d = log prediction - log target, as in the paper, without the later square root.

    Args:
        prediction: logarithm of depth [B, 1, H, W].
        target: logarithm of depth [B, 1, H, W], finite.
        valid: bool [B, 1, H, W], the labelled pixels.

    Returns:
        The sum over the images with a labelled pixel, and their number.
    """
    pixels = valid.sum((1, 2, 3))
    error = torch.where(valid, prediction - target, 0.0)
    square = error.square().sum((1, 2, 3)) / pixels.clamp_min(1)
    mean = error.sum((1, 2, 3)) / pixels.clamp_min(1)
    return Term((square - 0.5 * mean.square()).sum(), (pixels > 0).sum().float())


def berhu(error: Tensor, valid: Tensor) -> Term:
    """Reverse Huber loss per image (I. Laina et al., 3DV 2016, "Deeper depth prediction with fully convolutional networks").

    |e| up to c, (e² + c²) / 2c above, c being a fifth of the image's largest error. The paper takes c from the whole batch;
    per image it depends neither on the other images nor on how a batch is spread over devices.

    Args:
        error: prediction - target [B, 1, H, W], 0 where there is no label.
        valid: bool [B, 1, H, W], the labelled pixels.

    Returns:
        The sum over the images with a labelled pixel of the mean over their labelled pixels, and the images' number.
    """
    size = error.abs()
    # The floor only avoids 0 / 0 in an image without any error.
    threshold = (0.2 * size.detach().amax((1, 2, 3), keepdim=True)).clamp_min(1e-6)
    each = torch.where(size <= threshold, size, (error.square() + threshold.square()) / (2 * threshold))
    pixels = valid.sum((1, 2, 3))
    return Term((each.sum((1, 2, 3)) / pixels.clamp_min(1)).sum(), (pixels > 0).sum().float())


class Depth(Task):
    """A positive distance for every pixel; the target is float [1, H, W], zero, negative or NaN where there is no label.

    The head's raw output r means softplus(r) / ln 2 times the median depth of the training labels: always positive, and 0 is
    the trivial prediction.

    Args:
        loss: ``l1`` (mean over pixels, in the labels' unit), ``silog`` (scale-invariant logarithmic, per image) or ``berhu``
            (reverse Huber, per image).
        maximum: labels beyond it count as missing, and predictions are cut there for metrics and for people, as benchmarks do
            with far or unreliable measurements; null keeps everything.
        unit: of the labels, for tables and pictures.
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes the U-Net decoder.

    Raises:
        ConfigError: a maximum that is not positive.
    """

    kind: ClassVar[Kind] = "depth"
    meaning: ClassVar[str] = "distance of every pixel in the unit [B, 1, H, W]"
    median: Tensor

    def __init__(
        self,
        loss: Literal["l1", "silog", "berhu"] = "l1",
        maximum: float | None = None,
        unit: str = "m",
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(weight, auxiliary, head)
        if maximum is not None and not maximum > 0:
            raise ConfigError(f"maximum is {maximum}, expected > 0 ({unit}), or null for none")
        self.maximum = math.inf if maximum is None else maximum
        self.unit = unit
        self.terms = (loss,)
        self.noise = "laplace" if loss == "l1" else "gaussian"
        self.measures = {"abs": Measure(False, 0.0, unit), "rel": Measure(False, 0.0), "rmse": Measure(False, 0.0, unit)}
        self.measures |= {f"delta{power}": Measure(True, 1.0) for power in (1, 2, 3)}
        self.register_buffer("median", torch.ones(()), persistent=False)

    @property
    def channels(self) -> int:
        """One."""
        return 1

    @property
    def target(self) -> TargetSpec:
        """A depth map."""
        return TargetSpec("depth", (1,), torch.float32, 0.0)

    def default_head(self, specs: Sequence[FeatureSpec]) -> Head:
        """The U-Net decoder."""
        return UNet(specs, self.channels)

    def learn(self, targets: Iterable[Tensor]) -> None:
        """Learn the (lower) median over all labelled pixels, to 0.1 %, in memory that does not grow with their number."""
        shift = 23 - FRACTION_BITS
        size = 0x7F800000 >> shift
        count = torch.zeros(size, dtype=torch.long)
        total = torch.zeros(size, dtype=torch.float64)
        for target in targets:
            depth = target.float().cpu()
            depth = depth[self._known(depth)]
            # The bits of positive floats, read as an integer, are in the order of the floats.
            bins = depth.view(torch.int32) >> shift
            count += torch.bincount(bins, minlength=size)
            total += torch.bincount(bins, weights=depth.double(), minlength=size)
        pixels = count.sum()
        if not pixels:
            self.median.fill_(1.0)
            return
        middle = torch.searchsorted(count.cumsum(0), (pixels + 1) // 2)
        self.median.fill_((total[middle] / count[middle]).item())

    def facts(self) -> dict[str, Any]:
        """The median."""
        return {"median": self.median.item()}

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over the median."""
        self.median.fill_(facts["median"])

    def check(self, target: Tensor, where: str) -> None:
        """Refuse what is no depth map and infinite depth."""
        if target.ndim != 3 or target.shape[0] != 1:
            self.fail(where, f"the depth has shape {tuple(target.shape)}, expected [1, height, width]")
        if target.isinf().any():
            self.fail(where, "the depth has infinite pixels; write 0 or NaN for pixels without a label")

    def metres(self, prediction: Tensor) -> Tensor:
        """What a raw prediction means in the labels' unit, > 0, of the same shape."""
        return F.softplus(at_least_float32(prediction)) * (self.median / LN2)

    def _log_metres(self, prediction: Tensor) -> Tensor:
        # softplus(r) underflows far below 0, where its logarithm is r.
        logarithm = torch.where(prediction < -15, prediction, F.softplus(prediction.clamp_min(-15)).log())
        return logarithm + (self.median / LN2).log()

    def _known(self, target: Tensor) -> Tensor:
        return target.isfinite() & (target > 0) & (target <= self.maximum)

    def _valid(self, target: Tensor, labelled: Tensor) -> Tensor:
        return self._known(target) & labelled.view(-1, 1, 1, 1)

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """One term, named as the loss; ``l1`` divides by labelled pixels, the others by images with a labelled pixel."""
        (name,) = self.terms
        valid = self._valid(target, labelled)
        prediction = torch.where(valid, at_least_float32(prediction), 0.0)
        known = torch.where(valid, target.to(prediction), 1.0)
        if name == "silog":
            return {name: silog(self._log_metres(prediction), known.log(), valid)}
        error = torch.where(valid, self.metres(prediction) - known, 0.0)
        return {name: berhu(error, valid) if name == "berhu" else Term(error.abs().sum(), valid.sum().float())}

    def metrics(self) -> MetricCollection:
        """``abs``, ``rel``, ``rmse``, ``delta1`` to ``delta3`` and ``count`` (of pixels)."""
        return MetricCollection({"scores": DepthScores(), "count": Count()}, compute_groups=False)

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Depth [N] of the labelled pixels, predicted and true."""
        valid = self._valid(target, labelled)
        return self._shown(prediction[valid]), target[valid].float()

    def _shown(self, prediction: Tensor) -> Tensor:
        return self.metres(prediction).clamp(max=self.maximum)

    def trivial(self, target: Tensor) -> Tensor:
        """Zeros, which mean the median."""
        return torch.zeros(target.shape, device=target.device)

    def decode(self, prediction: Tensor) -> list[Any]:
        """Depth [H, W] per row, in the labels' unit."""
        return list(self._shown(prediction.detach())[:, 0].cpu())

    def interpret(self, prediction: Tensor) -> Tensor:
        """Distances [B, 1, H, W] in the labels' unit."""
        return self._shown(prediction)

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """The depth map."""
        return DepthMap(value.numpy(), self.unit, self.step)

    @property
    def step(self) -> float:
        """Units per grey level of a picture of 16 bits: a power of ten, small enough for five times the median."""
        return 10.0 ** math.ceil(math.log10(5 * self.median.item() / 65535))

    def describe(self) -> dict[str, Any]:
        """With the scale of pictures of 16 bits."""
        return super().describe() | {"png_step": self.step}

    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """Colours from near (dark) to far over the truth's range where there is one; grey where there is no label."""
        pictures = []
        if target is not None:
            pictures.append(torch.where(self._known(target), target, math.nan)[0].float().cpu())
        if prediction is not None:
            pictures.append(self._shown(prediction.detach())[0].cpu())
        if not pictures:
            return no_label(axes, image)
        shown = pictures[-1]
        values = next((values for picture in pictures if len(values := picture[~picture.isnan()])), torch.tensor([0.0, 1.0]))
        low, high = float(values.min()), float(values.max())
        unlabelled = shown.isnan()
        relative = ((shown.nan_to_num(low) - low) / max(high - low, 1e-9)).clamp(0, 1)
        painted = torch.from_numpy(matplotlib.colormaps["viridis"](relative.numpy())[..., :3]).permute(2, 0, 1)
        show_image(axes, torch.where(unlabelled, UNLABELLED, painted))
        label = f"{low:.3g} to {high:.3g} {self.unit}"
        ground = {"color": "black", "pad": 1, "alpha": 0.5}
        axes.text(0.02, 0.02, label, transform=axes.transAxes, fontsize=5, color="white", bbox=ground)
        return None
