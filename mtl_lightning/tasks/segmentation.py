"""A class for every pixel."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from mtl_lightning.batch import IGNORE, Kind, TargetSpec
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import FeatureSpec
from mtl_lightning.frame import Frame
from mtl_lightning.heads.base import Head
from mtl_lightning.heads.unet import UNet
from mtl_lightning.metrics.decisions import ScoreHistogram, mean_iou
from mtl_lightning.metrics.segmentation import SegmentationScores, confusion_scores, iou_key
from mtl_lightning.tasks.base import Count, HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.dice import dice_loss
from mtl_lightning.tasks.drawing import no_label
from mtl_lightning.tasks.imbalance import balanced_class_weights, check_gamma, focal, given_weights
from mtl_lightning.tasks.painting import draw_mask, iou_bars, palette
from mtl_lightning.tasks.results import Mask, Result
from mtl_lightning.tasks.thresholds import Thresholds


class SemanticSegmentation(Task):
    """A class index for every pixel; the target is a mask int64 [H, W] with -1 where there is no label.

    Args:
        classes: the names in the order of their indices.
        loss: ``ce`` (cross-entropy), ``dice`` (soft Dice per image), ``ce+dice`` (both, coefficient 1 each) or ``bce`` (binary
            cross-entropy with one output channel; two classes, the second is the foreground).
        class_weights: one weight >= 0 per class for the cross-entropy, whose mean then divides by the weight mass of the
            labelled pixels. ``balanced`` learns n / (C * n_c) from the pixels of (up to 256) training masks. Null weighs all
            alike.
        focal_gamma: exponent >= 0 that turns the cross-entropy into the focal loss, which counts what is right already less.
        threshold: for ``bce``, the least probability of the foreground at which a pixel is given to it. ``validation`` takes
            the one with the highest ``miou`` on the validation split, anew whenever that has been evaluated.
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
        class_weights: list[float] | Literal["balanced"] | None = None,
        focal_gamma: float = 0.0,
        threshold: float | Literal["validation"] = 0.5,
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(weight, auxiliary, head)
        weights = given_weights("class_weights", class_weights)
        self.decisions = Thresholds(threshold)
        _check_options(classes, loss, class_weights, focal_gamma, self.decisions)
        self.names = list(classes)
        self.binary = loss == "bce"
        self.terms = tuple(loss.split("+"))
        self.noise = "gaussian" if loss == "dice" else "softmax"
        self.measures = {"miou": Measure(True, 1.0), "pixel_accuracy": Measure(True, 1.0)}
        self.focal_gamma = focal_gamma
        self.balanced = class_weights == "balanced"
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
        pixels = torch.zeros(len(self.names), dtype=torch.float64)
        for target in targets:
            indices = target.flatten().long()
            pixels += torch.bincount(indices[indices >= 0], minlength=len(pixels)).cpu()
        self.log_frequencies.copy_(((pixels + 1) / (pixels + 1).sum()).log())
        if self.balanced:
            self._weigh(balanced_class_weights(pixels))

    def _weigh(self, weights: Tensor) -> None:
        self.class_weights = weights.to(self.log_frequencies.device)

    def facts(self) -> dict[str, Any]:
        """The classes, their frequencies and, if learnt, their weights, and the threshold if it was chosen."""
        facts = {"classes": list(self.names), "log_frequencies": self.log_frequencies.tolist()}
        if self.balanced and self.class_weights is not None:
            facts["class_weights"] = self.class_weights.tolist()
        return facts | self.decisions.facts()

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over what :meth:`facts` returned; raises :class:`CheckpointError` for other classes."""
        self.same_classes(self.names, facts["classes"])
        self.log_frequencies.copy_(torch.tensor(facts["log_frequencies"]))
        if self.balanced and facts.get("class_weights") is not None:
            self._weigh(torch.tensor(facts["class_weights"]))
        self.decisions.restore(facts, self.name, 1)

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
        if self.balanced and self.class_weights is None:
            raise RuntimeError(f"task '{self.name}' has not learnt from training labels yet: call learn() or restore()")
        index = torch.where(valid, target, 0)
        mass = valid.float() if self.class_weights is None else torch.where(valid, self.class_weights[index], 0.0)
        # Not reduced by the library: its sum over a picture has no deterministic CUDA kernel.
        if self.binary:
            each = F.binary_cross_entropy_with_logits(prediction[:, 0], index.to(prediction), reduction="none")
        else:
            each = F.cross_entropy(prediction, index, reduction="none")
        return Term((focal(each, self.focal_gamma) * mass).sum(), mass.sum())

    @staticmethod
    def _valid(target: Tensor, labelled: Tensor) -> Tensor:
        return (target >= 0) & labelled.view(-1, 1, 1)

    def metrics(self) -> MetricCollection:
        """``miou``, ``pixel_accuracy``, ``iou_<class>`` and ``count`` (of pixels)."""
        metrics: dict[str, Metric | MetricCollection] = {"scores": SegmentationScores(self.names), "count": Count()}
        if self.decisions.tuning:
            metrics["decisions"] = ScoreHistogram()
        return MetricCollection(metrics, compute_groups=False)

    def keys(self) -> list[str]:
        """With the IoU of each class."""
        return [*super().keys(), *map(iou_key, self.names)]

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Class indices [N] of the labelled pixels, predicted and true."""
        valid = self._valid(target, labelled)
        return self._classes(prediction)[valid], target[valid]

    def _classes(self, prediction: Tensor) -> Tensor:
        # max is four times as fast as argmax over a dimension that is not the last (CPU).
        if not self.binary:
            return prediction.max(1).indices
        return (prediction[:, 0] > 0 if self.decisions.plain else self.decisions(prediction[:, 0])).long()

    def update(self, metrics: MetricCollection, prediction: Tensor, target: Tensor, labelled: Tensor) -> None:
        """With the scores of the pixels where a threshold is to be chosen."""
        if not self.decisions.tuning:
            return super().update(metrics, prediction, target, labelled)
        prediction, valid = prediction.detach().float(), self._valid(target, labelled)
        if valid.any():
            decided, log_odds = self._classes(prediction)[valid], prediction[:, 0][valid]
            metrics.update(prediction=decided, target=target[valid], log_odds=log_odds)
        return None

    def update_trivial(self, metrics: MetricCollection, target: Tensor, labelled: Tensor) -> None:
        """The most frequent class, whatever the threshold."""
        trivial, valid = self.trivial(target), self._valid(target, labelled)
        if valid.any():
            decided = (trivial[:, 0] > 0).long() if self.binary else trivial.max(1).indices
            metrics.update(prediction=decided[valid], target=target[valid], log_odds=trivial[:, 0][valid])

    def tune(self, results: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Take the threshold with the highest ``miou``."""
        if "histogram" not in results:
            return results
        return {**results, **confusion_scores(self.decisions.choose(results["histogram"], mean_iou)[..., 0], self.names)}

    @property
    def untuned(self) -> bool:
        """Whether the threshold is still to be chosen."""
        return self.decisions.untuned

    def thresholds(self) -> dict[str, float]:
        """Of the foreground, if it was chosen."""
        return self.decisions.probabilities(self.names[1:])

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
        """The classes' colours over the grey picture, plain grey where there is no label."""
        if prediction is None and target is None:
            return no_label(axes, image)
        mask = target if prediction is None else self._classes(prediction.detach()[None])[0]
        return draw_mask(axes, image, mask.long().cpu(), self.names)  # type: ignore[union-attr]

    def plots(self, results: Mapping[str, Tensor]) -> Mapping[str, Callable[[Axes], None]]:
        """``iou``: a bar per class that is in the results."""
        scores = {name: float(results[iou_key(name)]) for name in self.names if iou_key(name) in results}
        return {"iou": partial(iou_bars, scores)} if scores else {}


def _check_options(classes: Sequence[str], loss: str, class_weights: object, focal_gamma: float, decisions: Thresholds) -> None:
    if len(classes) < 2 or (loss == "bce" and len(classes) != 2):
        raise ConfigError(f"classes {list(classes)}: expected {'exactly' if loss == 'bce' else 'at least'} 2 for loss '{loss}'")
    keys = Counter(map(iou_key, classes))
    if twins := [name for name in classes if keys[iou_key(name)] > 1]:
        raise ConfigError(f"classes {twins} would share one metric name, '{iou_key(twins[0])}'; rename all but one")
    check_gamma(focal_gamma)
    if loss == "dice" and (class_weights is not None or focal_gamma):
        key = "focal_gamma changes" if class_weights is None else "class_weights weigh"
        raise ConfigError(f"{key} the cross-entropy, and loss 'dice' has none; remove it or take 'ce+dice'")
    if loss != "bce" and (decisions.tuning or not decisions.plain):
        raise ConfigError(f"threshold decides between two classes of loss 'bce', and the loss is '{loss}'; leave it out")
    if isinstance(class_weights, list) and len(class_weights) != len(classes):
        raise ConfigError(f"class_weights {class_weights}: expected {len(classes)} numbers >= 0, one per class, not all 0")
