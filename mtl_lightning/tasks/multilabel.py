"""Several labels for every image, each there or not."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

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
from mtl_lightning.metrics.decisions import positive_f1
from mtl_lightning.metrics.multilabel import MultiLabelScores, table_scores
from mtl_lightning.tasks.base import HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.charts import reliability_diagram
from mtl_lightning.tasks.drawing import RIGHT, WRONG, no_label, write
from mtl_lightning.tasks.imbalance import balanced_pos_weight, check_gamma, focal, given_weights
from mtl_lightning.tasks.results import Labels, Result
from mtl_lightning.tasks.thresholds import Thresholds


class MultiLabel(Task):
    """Labels that may hold together; the target is float32 [L] of 0, 1 and, where not known, NaN.

    The loss is the binary cross-entropy over the known entries, or the focal loss.

    Args:
        labels: the names in the order of the target; null takes those of the training split.
        pos_weight: what an entry that is 1 counts, one number >= 0 per label; the mean divides by the number of known entries
            all the same, as that of ``torch.nn.functional.binary_cross_entropy_with_logits``. ``balanced`` learns negatives /
            positives from the training labels, at least 0.01 and at most 100. Null is 1 for all.
        focal_gamma: exponent >= 0 of the focal loss, which counts what is right already less; 0 is the cross-entropy.
        threshold: the least probability of a label that is taken to hold. ``validation`` takes, for each label, the one with
            the highest ``f1`` on the validation split, anew whenever that has been evaluated; ``f1`` is then the first metric,
            which the score follows, and the trivial predictor says yes to every label, the best constant guess for it.
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes one linear layer on the pooled features.

    Raises:
        ConfigError: no label, one named twice, or numbers out of their ranges.
    """

    kind: ClassVar[Kind] = "multilabel"
    meaning: ClassVar[str] = "probability of each label [B, L]"
    pos_weight: Tensor | None
    rates: Tensor | None

    def __init__(
        self,
        labels: list[str] | None = None,
        pos_weight: list[float] | Literal["balanced"] | None = None,
        focal_gamma: float = 0.0,
        threshold: float | Literal["validation"] = 0.5,
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(weight, auxiliary, head)
        if labels is not None and (not labels or len(set(labels)) < len(labels)):
            raise ConfigError(f"labels {labels}: expected at least one name, each once")
        check_gamma(focal_gamma)
        self.names = None if labels is None else list(labels)
        self.noise = "softmax"
        self.focal_gamma = focal_gamma
        self.decisions = Thresholds(threshold)
        first = ("f1", "accuracy") if self.decisions.tuning else ("accuracy", "f1")
        self.measures = dict.fromkeys([*first, "auroc"], Measure(True, 1.0)) | {"ece": Measure(False, 0.0)}
        self.balanced = pos_weight == "balanced"
        self.register_buffer("pos_weight", given_weights("pos_weight", pos_weight), persistent=False)
        self.register_buffer("rates", None, persistent=False)
        if labels is not None:
            self._labels()

    def _labels(self) -> list[str]:
        if self.names is None:
            raise ConfigError(f"task '{self.name}' does not know its labels; name them or let a data module find them")
        if self.pos_weight is not None and len(self.pos_weight) != len(self.names):
            raise ConfigError(
                f"task '{self.name}': pos_weight has {len(self.pos_weight)} numbers, expected one for each of the "
                f"{len(self.names)} labels in this order: {self.names}"
            )
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
        rows = torch.stack([*targets, torch.full((self.channels,), torch.nan)])
        positives, negatives = (rows == 1).sum(0), (rows == 0).sum(0)
        self._remember("rates", (positives + 1.0) / (positives + negatives + 2.0))
        if self.balanced:
            self._remember("pos_weight", balanced_pos_weight(positives, negatives))

    def _remember(self, buffer: str, value: Tensor) -> None:
        old = getattr(self, buffer)
        setattr(self, buffer, value if old is None else value.to(old.device))

    def facts(self) -> dict[str, Any]:
        """``names`` and, once learnt, the ``rates`` of positives, the balanced ``pos_weight`` and ``thresholds``."""
        facts = {"names": self.names, "rates": None if self.rates is None else self.rates.tolist()}
        if self.balanced and self.pos_weight is not None:
            facts["pos_weight"] = self.pos_weight.tolist()
        return facts | self.decisions.facts()

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over labels and what was learnt of them; raises :class:`CheckpointError` for other labels."""
        if facts.get("names") is None:
            return
        self.same_classes(self.names, facts["names"])
        self.names = list(facts["names"])
        if facts.get("rates") is not None:
            self._remember("rates", torch.tensor(facts["rates"]))
        if self.balanced and facts.get("pos_weight") is not None:
            self._remember("pos_weight", torch.tensor(facts["pos_weight"]))
        self.decisions.restore(facts, self.name, len(self.names))

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
        """Binary cross-entropy or focal loss; divides by known entries."""
        if self.balanced and self.pos_weight is None:
            raise self._ignorant()
        prediction = at_least_float32(prediction)
        known = labelled.unsqueeze(1) & ~target.isnan()
        prediction, target = torch.where(known, prediction, 0.0), torch.where(known, target, 0.0).to(prediction)
        each = focal(F.binary_cross_entropy_with_logits(prediction, target, reduction="none"), self.focal_gamma)
        if self.pos_weight is not None:
            each = each * torch.where(target == 1, self.pos_weight.to(each), 1.0)
        return {"loss": Term(torch.where(known, each, 0.0).sum(), known.sum().to(each))}

    def metrics(self) -> MetricCollection:
        """``accuracy``, ``f1``, ``auroc``, ``ece``, ``reliability`` and ``count`` (of known entries)."""
        return MetricCollection({"scores": MultiLabelScores(self.channels, self.decisions.tuning)}, compute_groups=False)

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and targets [N, L] of the labelled images, NaN where an entry is not known."""
        return prediction[labelled], target[labelled]

    def update(self, metrics: MetricCollection, prediction: Tensor, target: Tensor, labelled: Tensor) -> None:
        """With the labels that the thresholds decide for."""
        logits, target = self.elements(prediction.detach().float(), target, labelled)
        if len(target):
            metrics.update(logits, target, decided=self.decisions(logits))

    def update_trivial(self, metrics: MetricCollection, target: Tensor, labelled: Tensor) -> None:
        """More often there than not; yes to every label where thresholds are chosen for ``f1``."""
        logits, target = self.elements(self.trivial(target), target, labelled)
        if len(target):
            metrics.update(logits, target, decided=(logits >= 0) | self.decisions.tuning)

    def tune(self, results: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Take each label's threshold with the highest F1."""
        if not self.decisions.tuning or "histogram" not in results:
            return results
        return {**results, **table_scores(self.decisions.choose(results["histogram"], positive_f1))}

    @property
    def untuned(self) -> bool:
        """Whether thresholds are still to be chosen."""
        return self.decisions.untuned

    def thresholds(self) -> dict[str, float]:
        """Of each label, if they were chosen."""
        return self.decisions.probabilities(self._labels())

    def _ignorant(self) -> RuntimeError:
        return RuntimeError(f"task '{self.name}' has not learnt from training labels yet: call learn() or restore()")

    def trivial(self, target: Tensor) -> Tensor:
        """The log-odds of the labels' rates in every row."""
        if self.rates is None:
            raise self._ignorant()
        return self.rates.to(target.device).logit().expand(len(target), -1)

    def decode(self, prediction: Tensor) -> list[Any]:
        """The names of the labels that the thresholds decide for, per row."""
        return self._named(self.decisions(prediction))

    def _named(self, decided: Tensor) -> list[Any]:
        names = self._labels()
        return [[name for name, yes in zip(names, row, strict=True) if yes] for row in decided.tolist()]

    def interpret(self, prediction: Tensor) -> Tensor:
        """Probabilities [B, L]."""
        return at_least_float32(prediction).sigmoid()

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """The labels that hold, with all probabilities."""
        return Labels(value, dict(zip(self._labels(), meaning.tolist(), strict=True)))

    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """The labels that hold in words, green where all known ones are right and red where one is wrong.

        Of a row with some labels, those that are not known have a question mark: all beside the truth, and beside the prediction
        those said to hold.
        """
        if prediction is None:
            if target is None:
                return no_label(axes, image)
            return write(axes, image, self._text(target == 1), unknown=self._unknown(target.isnan()))
        decided = self.decisions(prediction.detach())
        if target is None:
            return write(axes, image, self._text(decided))
        known = ~target.isnan()
        color = RIGHT if bool((decided == (target == 1))[known].all()) else WRONG
        return write(axes, image, self._text(decided & known), color, self._unknown(decided & ~known))

    def plots(self, results: Mapping[str, Tensor]) -> Mapping[str, Callable[[Axes], None]]:
        """``reliability``: how far the probabilities of all entries can be believed."""
        table = results.get("reliability")
        return {} if table is None else {"reliability": partial(reliability_diagram, table, "share of labels that hold")}

    def _text(self, decided: Tensor) -> str:
        return ", ".join(self._named(decided[None])[0]) or "none"

    def _unknown(self, labels: Tensor) -> str:
        return ", ".join(f"{name}?" for name in self._named(labels[None])[0])
