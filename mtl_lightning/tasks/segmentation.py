"""A class for every pixel."""

import colorsys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Patch
from torch import Tensor
from torchmetrics import MetricCollection

from mtl_lightning.batch import IGNORE, Kind, TargetSpec
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import FeatureSpec
from mtl_lightning.frame import Frame
from mtl_lightning.heads.base import Head
from mtl_lightning.heads.unet import UNet
from mtl_lightning.metrics.segmentation import SegmentationScores, iou_key
from mtl_lightning.tasks.base import Count, HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.drawing import no_label, show_image
from mtl_lightning.tasks.results import Mask, Result

COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#ff9da7", "#9c755f")
UNLABELLED = (0.6, 0.6, 0.6)
LEGEND = 6
"""A legend of more classes would hide a small picture."""


def palette(count: int) -> Tensor:
    """Colours of classes, [count, 3] in 0..1: a few fixed ones, then hues in steps of the golden ratio."""
    fixed = [to_rgb(color) for color in COLORS[:count]]
    turns = range(len(fixed), count)
    further = [colorsys.hsv_to_rgb(turn * 0.618 % 1, 0.55 + turn % 2 * 0.35, 0.9 - turn % 3 * 0.2) for turn in turns]
    return torch.tensor(fixed + further)


def dice_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Term:
    """Soft Dice loss per image (F. Milletari, N. Navab, S.-A. Ahmadi, 3DV 2016, "V-Net").

    1 - the mean Dice coefficient 2 * sum(p * y) / (sum(p) + sum(y)) over the classes that the image's truth contains, p being
    the softmax. A class that is absent has no term of its own, where one wrong pixel would cost as much as the whole class:
    pixels wrongly given to it are missing from the classes that are there. Ours has no squares in the denominator.

    Args:
        prediction: logits [B, C, H, W].
        target: class indices [B, H, W].
        valid: bool [B, H, W], the labelled pixels.

    Returns:
        The sum over the images with a labelled pixel, and their number.
    """
    valid = valid.unsqueeze(1)
    probability = torch.where(valid, prediction.softmax(1), 0.0)
    classes = torch.arange(prediction.shape[1], device=target.device).view(1, -1, 1, 1)
    truth = (target.unsqueeze(1) == classes) & valid
    size = truth.sum((2, 3))
    overlap = torch.where(truth, probability, 0.0).sum((2, 3))
    dice = 2 * overlap / (probability.sum((2, 3)) + size).clamp_min(1.0)
    present = size > 0
    images = present.any(1)
    mean = torch.where(present, dice, 0.0).sum(1) / present.sum(1).clamp_min(1)
    return Term(torch.where(images, 1 - mean, 0.0).sum(), images.sum().float())


class SemanticSegmentation(Task):
    """A class index for every pixel; the target is a mask int64 [H, W] with -1 where there is no label.

    Args:
        classes: the names in the order of their indices.
        loss: ``ce`` (cross-entropy), ``dice`` (soft Dice per image), ``ce+dice`` (both, coefficient 1 each) or ``bce`` (binary
            cross-entropy with one output channel; two classes, the second is the foreground).
        class_weights: one weight >= 0 per class for the cross-entropy, whose mean then divides by the weight mass of the
            labelled pixels; null weighs all alike.
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes the U-Net decoder.

    Raises:
        ConfigError: classes or weights that do not fit each other or the loss.
    """

    kind: ClassVar[Kind] = "mask"
    meaning: ClassVar[str] = "probability of each class for every pixel [B, C, H, W]"
    names: list[str]
    log_frequencies: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        classes: list[str],
        loss: Literal["ce", "dice", "ce+dice", "bce"] = "ce",
        class_weights: list[float] | None = None,
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(weight, auxiliary, head)
        _check_options(classes, loss, class_weights)
        self.names = list(classes)
        self.binary = loss == "bce"
        self.terms = tuple(loss.split("+"))
        self.noise = "gaussian" if loss == "dice" else "softmax"
        self.measures = {"miou": Measure(True, 1.0), "pixel_accuracy": Measure(True, 1.0)}
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("log_frequencies", torch.full((len(classes),), 1 / len(classes)).log(), persistent=False)

    @property
    def channels(self) -> int:
        """One per class; one in all for ``bce``."""
        return 1 if self.binary else len(self.names)

    @property
    def target(self) -> TargetSpec:
        """A mask."""
        return TargetSpec("mask", (), torch.long, IGNORE)

    def default_head(self, specs: Sequence[FeatureSpec]) -> Head:
        """The U-Net decoder."""
        return UNet(specs, self.channels)

    def learn(self, targets: Iterable[Tensor]) -> None:
        """Learn how frequent each class is among the labelled pixels (each counted once more, so that none is impossible)."""
        pixels = torch.ones(len(self.names), dtype=torch.float64)
        for target in targets:
            indices = target.flatten().long()
            pixels += torch.bincount(indices[indices >= 0], minlength=len(pixels)).cpu()
        self.log_frequencies.copy_((pixels / pixels.sum()).log())

    def facts(self) -> dict[str, Any]:
        """The classes and their frequencies."""
        return {"classes": list(self.names), "log_frequencies": self.log_frequencies.tolist()}

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over the frequencies; raises :class:`CheckpointError` for other classes."""
        self.same_classes(self.names, facts["classes"])
        self.log_frequencies.copy_(torch.tensor(facts["log_frequencies"]))

    def check(self, target: Tensor, where: str) -> None:
        """Refuse what is no mask and indices that are no class."""
        if target.ndim != 2 or target.is_floating_point() or target.is_complex():
            found = f"shape {tuple(target.shape)} and type {target.dtype}"
            self.fail(where, f"the mask has {found}, expected integers [height, width]")
        highest = len(self.names) - 1
        if target.numel() and (int(target.amin()) < IGNORE or int(target.amax()) > highest):
            values = torch.unique(target).tolist()
            wrong = [value for value in values if not IGNORE <= value <= highest]
            some = ", ".join(map(str, wrong[:8])) + (", …" if len(wrong) > 8 else "")
            self.fail(
                where,
                f"the mask has pixels of value {some}; expected 0 to {highest} ({', '.join(self.names)}), or {IGNORE} for pixels "
                f"without a label: name the missing classes, or have these values read as {IGNORE}",
            )

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """The terms named in :attr:`terms`; ``ce`` and ``bce`` divide by the pixels' weight mass, ``dice`` by labelled images."""
        prediction, valid = at_least_float32(prediction), self._valid(target, labelled)
        if self.terms == ("dice",):
            return {"dice": dice_loss(prediction, target, valid)}
        terms = {self.terms[0]: self._cross_entropy(prediction, target, valid)}
        if len(self.terms) > 1:
            terms["dice"] = dice_loss(prediction, target, valid)
        return terms

    def _cross_entropy(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Term:
        index = torch.where(valid, target, 0)
        mass = valid.float() if self.class_weights is None else torch.where(valid, self.class_weights[index], 0.0)
        # Not reduced by the library: its sum over a picture has no deterministic CUDA kernel.
        if self.binary:
            each = F.binary_cross_entropy_with_logits(prediction[:, 0], index.to(prediction), reduction="none")
        else:
            each = F.cross_entropy(prediction, index, reduction="none")
        return Term((each * mass).sum(), mass.sum())

    @staticmethod
    def _valid(target: Tensor, labelled: Tensor) -> Tensor:
        return (target >= 0) & labelled.view(-1, 1, 1)

    def metrics(self) -> MetricCollection:
        """``miou``, ``pixel_accuracy``, ``iou_<class>`` and ``count`` (of pixels)."""
        return MetricCollection({"scores": SegmentationScores(self.names), "count": Count()}, compute_groups=False)

    def keys(self) -> list[str]:
        """With the IoU of each class."""
        return [*super().keys(), *map(iou_key, self.names)]

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Class indices [N] of the labelled pixels, predicted and true."""
        valid = self._valid(target, labelled)
        return self._classes(prediction)[valid], target[valid]

    def _classes(self, prediction: Tensor) -> Tensor:
        # max is four times as fast as argmax over a dimension that is not the last (CPU).
        return (prediction[:, 0] > 0).long() if self.binary else prediction.max(1).indices

    def trivial(self, target: Tensor) -> Tensor:
        """The classes' log-frequencies (log-odds for ``bce``) at every pixel."""
        logits = self.log_frequencies.to(target.device)
        logits = logits[1:] - logits[:1] if self.binary else logits
        return logits.view(1, -1, 1, 1).expand(len(target), -1, *target.shape[-2:])

    def decode(self, prediction: Tensor) -> list[Any]:
        """A mask of class indices [H, W] per row, uint8 (int32 for more than 256 classes)."""
        return list(self._classes(prediction.detach()).to(torch.uint8 if len(self.names) <= 256 else torch.int32).cpu())

    def interpret(self, prediction: Tensor) -> Tensor:
        """Probabilities [B, C, H, W]."""
        prediction = at_least_float32(prediction)
        if self.binary:
            foreground = prediction.sigmoid()
            return torch.cat([1 - foreground, foreground], 1)
        return prediction.softmax(1)

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """The mask with the classes' names and colours."""
        colors = (palette(len(self.names)) * 255).round().int().tolist()
        return Mask(value.numpy(), list(self.names), [(red, green, blue) for red, green, blue in colors])

    def describe(self) -> dict[str, Any]:
        """With the class indices that pixels of a mask hold."""
        return super().describe() | {"pixels": dict(enumerate(self.names))}

    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """The classes' colours over the picture, grey where there is no label."""
        if prediction is None and target is None:
            return no_label(axes, image)
        mask = (target if prediction is None else self._classes(prediction.detach()[None])[0]).long().cpu()  # type: ignore[union-attr]
        colors = torch.cat([palette(len(self.names)), torch.tensor([UNLABELLED])])
        # Unlabelled is -1, which is the last colour.
        painted = colors[mask].permute(2, 0, 1)
        picture = image.detach().float().cpu()
        show_image(axes, torch.where(mask < 0, painted, 0.35 * picture + 0.65 * painted))
        seen = [index for index in torch.unique(mask).tolist() if index >= 0]
        if 0 < len(seen) <= LEGEND:
            patches = [Patch(color=to_hex(tuple(colors[index].tolist())), label=self.names[index]) for index in seen]
            axes.legend(handles=patches, loc="lower left", fontsize=5, handlelength=0.8, borderpad=0.3, labelspacing=0.2)
        return None

    def plots(self, results: Mapping[str, Tensor]) -> Mapping[str, Callable[[Axes], None]]:
        """``iou``: a bar per class that is in the results."""
        scores = {name: float(results[iou_key(name)]) for name in self.names if iou_key(name) in results}
        return {"iou": partial(_bars, scores)} if scores else {}


def _bars(scores: Mapping[str, float], axes: Axes) -> None:
    bars = axes.barh(list(scores), list(scores.values()), color=COLORS[0])
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("intersection over union")


def _check_options(classes: Sequence[str], loss: str, class_weights: Sequence[float] | None) -> None:
    if len(classes) < 2 or (loss == "bce" and len(classes) != 2):
        raise ConfigError(f"classes {list(classes)}: expected {'exactly' if loss == 'bce' else 'at least'} 2 for loss '{loss}'")
    keys = Counter(map(iou_key, classes))
    if twins := [name for name in classes if keys[iou_key(name)] > 1]:
        raise ConfigError(f"classes {twins} would share one metric name, '{iou_key(twins[0])}'; rename all but one")
    if class_weights is None:
        return
    if loss == "dice":
        raise ConfigError("class_weights weigh the cross-entropy, and loss 'dice' has none; remove them or take 'ce+dice'")
    fine = all(0 <= value < float("inf") for value in class_weights) and sum(class_weights) > 0
    if len(class_weights) != len(classes) or not fine:
        raise ConfigError(f"class_weights {list(class_weights)}: expected {len(classes)} numbers >= 0, one per class, not all 0")
