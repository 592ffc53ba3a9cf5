"""Several labels for every image, each there or not."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

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
from mtl_lightning.heads.linear import Linear
from mtl_lightning.metrics.multilabel import MultiLabelScores
from mtl_lightning.tasks.base import HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.drawing import RIGHT, WRONG, no_label, write
from mtl_lightning.tasks.results import Labels, Result


class MultiLabel(Task):
    """Labels that may hold together; the target is float32 [L] of 0, 1 and, where not known, NaN.

    The loss is the binary cross-entropy over the known entries.

    Args:
        labels: the names in the order of the target; null takes those of the training split.
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes one linear layer on the pooled features.

    Raises:
        ConfigError: no label, or one named twice.
    """

    kind: ClassVar[Kind] = "multilabel"
    meaning: ClassVar[str] = "probability of each label [B, L]"
    rates: Tensor | None

    def __init__(
        self,
        labels: list[str] | None = None,
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(weight, auxiliary, head)
        if labels is not None and (not labels or len(set(labels)) < len(labels)):
            raise ConfigError(f"labels {labels}: expected at least one name, each once")
        self.names = None if labels is None else list(labels)
        self.noise = "softmax"
        self.measures = {"accuracy": Measure(True, 1.0), "f1": Measure(True, 1.0), "auroc": Measure(True, 1.0)}
        self.register_buffer("rates", None, persistent=False)

    def _labels(self) -> list[str]:
        if self.names is None:
            raise ConfigError(f"task '{self.name}' does not know its labels; name them or let a data module find them")
        return self.names

    @property
    def channels(self) -> int:
        """One logit per label."""
        return len(self._labels())

    @property
    def target(self) -> TargetSpec:
        """0, 1 or NaN per label."""
        return TargetSpec("multilabel", (self.channels,), torch.float32, 0.0)

    def default_head(self, specs: Sequence[FeatureSpec]) -> Head:
        """One linear layer on the pooled features."""
        return Linear(specs, self.channels)

    def learn(self, targets: Iterable[Tensor]) -> None:
        """Learn how often each label holds where it is known (one yes and one no are added, so that nothing is certain)."""
        positive, known = torch.ones(self.channels), torch.full((self.channels,), 2.0)
        rows = torch.stack([*targets, torch.full((self.channels,), torch.nan)])
        positive += (rows == 1).sum(0)
        known += (~rows.isnan()).sum(0)
        self._remember(positive / known)

    def _remember(self, rates: Tensor) -> None:
        self.rates = rates if self.rates is None else rates.to(self.rates.device)

    def facts(self) -> dict[str, Any]:
        """``names`` and, once learnt, the ``rates`` of positives."""
        return {"names": self.names, "rates": None if self.rates is None else self.rates.tolist()}

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over labels and rates; raises :class:`CheckpointError` for other labels."""
        if facts.get("names") is None:
            return
        self.same_classes(self.names, facts["names"])
        self.names = list(facts["names"])
        if facts.get("rates") is not None:
            self._remember(torch.tensor(facts["rates"]))

    def check(self, target: Tensor, where: str) -> None:
        """Refuse other values than 0, 1 and NaN, and a row that knows nothing."""
        names = self._labels()
        if tuple(target.shape) != (len(names),):
            self.fail(where, f"the label has shape {tuple(target.shape)}, expected ({len(names)},): {', '.join(names)}")
        known = ~target.isnan()
        for name, value, is_known in zip(names, target.tolist(), known.tolist(), strict=True):
            if is_known and value not in (0, 1):
                self.fail(where, f"label '{name}' is {value:g}, expected 0 or 1, or nothing where it is not known")
        if not known.any():
            self.fail(where, "no label is known; leave the whole target out of the row")

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """Binary cross-entropy; divides by known entries."""
        prediction = at_least_float32(prediction)
        known = labelled.unsqueeze(1) & ~target.isnan()
        prediction, target = torch.where(known, prediction, 0.0), torch.where(known, target, 0.0).to(prediction)
        each = F.binary_cross_entropy_with_logits(prediction, target, reduction="none")
        return {"loss": Term(torch.where(known, each, 0.0).sum(), known.sum().to(each))}

    def metrics(self) -> MetricCollection:
        """``accuracy``, ``f1``, ``auroc`` and ``count`` (of known entries)."""
        return MetricCollection({"scores": MultiLabelScores(self.channels)}, compute_groups=False)

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and targets [N, L] of the labelled images, NaN where an entry is not known."""
        return prediction[labelled], target[labelled]

    def trivial(self, target: Tensor) -> Tensor:
        """The log-odds of the labels' rates in every row."""
        if self.rates is None:
            raise RuntimeError(f"task '{self.name}' has not learnt from training labels yet: call learn() or restore()")
        return self.rates.to(target.device).logit().expand(len(target), -1)

    def decode(self, prediction: Tensor) -> list[Any]:
        """The names of the labels with a probability of at least one half, per row."""
        names = self._labels()
        return [[name for name, yes in zip(names, row, strict=True) if yes] for row in (prediction >= 0).tolist()]

    def interpret(self, prediction: Tensor) -> Tensor:
        """Probabilities [B, L]."""
        return at_least_float32(prediction).sigmoid()

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """The labels that hold, with all probabilities."""
        return Labels(value, dict(zip(self._labels(), meaning.tolist(), strict=True)))

    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """The labels that hold in words, green where all known ones are right and red where one is wrong."""
        if prediction is None:
            if target is None:
                return no_label(axes, image)
            return write(axes, image, self._text(self.decode(torch.where(target == 1, 1.0, -1.0)[None])[0]))
        text, color = self._text(self.decode(prediction.detach()[None])[0]), "black"
        if target is not None:
            known = ~target.isnan()
            right = bool(((prediction.detach() >= 0) == (target == 1))[known].all())
            color = RIGHT if right else WRONG
        return write(axes, image, text, color)

    @staticmethod
    def _text(labels: Sequence[str]) -> str:
        return ", ".join(labels) or "none"
