"""One class for every image."""

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
from mtl_lightning.metrics.classification import ClassificationScores, confusion_scores
from mtl_lightning.metrics.decisions import mean_f1
from mtl_lightning.tasks.base import HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.charts import heat_map, reliability_diagram
from mtl_lightning.tasks.drawing import RIGHT, WRONG, no_label, write
from mtl_lightning.tasks.imbalance import balanced_class_weights, check_gamma, focal, given_weights
from mtl_lightning.tasks.results import Category, Result
from mtl_lightning.tasks.thresholds import Thresholds


class Classification(Task):
    """A class index for every image; the target is an int64 scalar in 0 .. C - 1.

    The loss is the cross-entropy, with the weights and the label smoothing (C. Szegedy et al., CVPR 2016, "Rethinking the
    Inception architecture") of ``torch.nn.functional.cross_entropy``, over the labelled images, or the focal loss.

    Args:
        classes: the names in the order of their indices; null takes those of the training split.
        class_weights: one weight >= 0 per class; the mean then divides by the weights of the labelled images' classes.
            ``balanced`` learns n / (C * n_c) from the training labels. Null weighs all alike.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
        focal_gamma: exponent >= 0 of the focal loss, which counts what is right already less; 0 is the cross-entropy.
        top_k: also report how often the truth is among so many most probable classes (``accuracy_top5`` for 5).
        threshold: of two classes, the least probability of the second at which it is decided for. ``validation`` takes the
            one with the highest ``f1`` on the validation split, anew whenever that has been evaluated; ``f1`` is then the
            first metric, which the score follows.
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes one linear layer on the pooled features.

    Raises:
        ConfigError: classes, weights, smoothing or others that do not fit each other or their ranges.
    """

    kind: ClassVar[Kind] = "class"
    meaning: ClassVar[str] = "probability of each class [B, C]"
    class_weights: Tensor | None
    frequencies: Tensor | None

    def __init__(
        self,
        classes: list[str] | None = None,
        class_weights: list[float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        top_k: list[int] | None = None,
        threshold: float | Literal["validation"] = 0.5,
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(weight, auxiliary, head)
        if classes is not None and (not classes or len(set(classes)) < len(classes)):
            raise ConfigError(f"classes {classes}: expected at least one name, each once")
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {label_smoothing}, expected a share in [0, 1)")
        check_gamma(focal_gamma)
        if focal_gamma and label_smoothing:
            raise ConfigError("focal_gamma and label_smoothing do not go together: set one of them to 0")
        if any(k < 2 for k in top_k or ()):
            raise ConfigError(f"top_k {top_k}: expected numbers of 2 and more")
        self.names = None if classes is None else list(classes)
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        self.top_k = sorted(set(top_k or ()))
        self.noise = "softmax"
        self.decisions = Thresholds(threshold)
        first = ("f1", "accuracy") if self.decisions.tuning else ("accuracy", "f1")
        keys = [*first, *(f"accuracy_top{k}" for k in self.top_k), "auroc"]
        self.measures = dict.fromkeys(keys, Measure(True, 1.0)) | {"ece": Measure(False, 0.0)}
        self.balanced = class_weights == "balanced"
        self.register_buffer("class_weights", given_weights("class_weights", class_weights), persistent=False)
        self.register_buffer("frequencies", None, persistent=False)
        if classes is not None:
            self._classes()

    def _classes(self) -> list[str]:
        if self.names is None:
            raise ConfigError(f"task '{self.name}' does not know its classes; name them or let a data module find them")
        size = len(self.names)
        if self.class_weights is not None and len(self.class_weights) != size:
            raise ConfigError(
                f"task '{self.name}': class_weights has {len(self.class_weights)} numbers, expected one for each of the "
                f"{size} classes in this order: {self.names}"
            )
        if self.top_k and self.top_k[-1] >= size:
            raise ConfigError(f"task '{self.name}': top_k {self.top_k}: expected less than the number of classes, {size}")
        if size != 2 and (self.decisions.tuning or not self.decisions.plain):
            raise ConfigError(
                f"model.tasks.{self.name}.init_args.threshold: it decides between 2 classes, and task '{self.name}' has {size}; "
                "leave it out"
            )
        return self.names

    @property
    def channels(self) -> int:
        """One logit per class."""
        return len(self._classes())

    @property
    def target(self) -> TargetSpec:
        """A class index."""
        return TargetSpec("class", (), torch.long, 0)

    def default_head(self, specs: Sequence[FeatureSpec]) -> Head:
        """One linear layer on the pooled features."""
        return Linear(specs, self.channels)

    def learn(self, targets: Iterable[Tensor]) -> None:
        """Learn how frequent each class is (each counted once more than seen, so that none is impossible)."""
        indices = torch.tensor([int(target) for target in targets], dtype=torch.long)
        counts = torch.bincount(indices, minlength=self.channels)
        self._remember("frequencies", (counts + 1.0) / (counts + 1.0).sum())
        if self.balanced:
            self._remember("class_weights", balanced_class_weights(counts))

    def _remember(self, buffer: str, value: Tensor) -> None:
        old = getattr(self, buffer)
        setattr(self, buffer, value if old is None else value.to(old.device))

    def facts(self) -> dict[str, Any]:
        """``names`` and, once learnt, their ``frequencies``, balanced ``class_weights`` and ``thresholds``."""
        facts = {"names": self.names, "frequencies": None if self.frequencies is None else self.frequencies.tolist()}
        if self.balanced and self.class_weights is not None:
            facts["class_weights"] = self.class_weights.tolist()
        return facts | self.decisions.facts()

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over classes and what was learnt of them; raises :class:`CheckpointError` for other classes."""
        if facts.get("names") is None:
            return
        self.same_classes(self.names, facts["names"])
        self.names = list(facts["names"])
        if facts.get("frequencies") is not None:
            self._remember("frequencies", torch.tensor(facts["frequencies"]))
        if self.balanced and facts.get("class_weights") is not None:
            self._remember("class_weights", torch.tensor(facts["class_weights"]))
        self.decisions.restore(facts, self.name, 1)

    def check(self, target: Tensor, where: str) -> None:
        """Refuse what is no class index."""
        if target.ndim or target.is_floating_point() or target.is_complex():
            self.fail(where, f"the label has shape {tuple(target.shape)} and type {target.dtype}, expected one class index")
        names = self._classes()
        if not 0 <= int(target) < len(names):
            self.fail(where, f"class index {int(target)}, expected 0 to {len(names) - 1} ({', '.join(names)})")

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """Cross-entropy or focal loss; divides by labelled images, or the weights of their classes."""
        if self.balanced and self.class_weights is None:
            raise self._ignorant()
        prediction = at_least_float32(prediction)
        # Unlabelled rows are replaced before the softmax, whose gradient would turn a NaN of theirs into NaN * 0.
        prediction = torch.where(labelled.unsqueeze(1), prediction, 0.0)
        target = torch.where(labelled, target, 0)
        weights = None if self.class_weights is None else self.class_weights.to(prediction)
        mass = torch.ones_like(prediction[:, 0]) if weights is None else weights[target]
        if self.focal_gamma:
            each = focal(F.cross_entropy(prediction, target, reduction="none"), self.focal_gamma) * mass
        else:
            each = F.cross_entropy(prediction, target, weights, reduction="none", label_smoothing=self.label_smoothing)
        return {"loss": Term(torch.where(labelled, each, 0.0).sum(), torch.where(labelled, mass, 0.0).sum())}

    def metrics(self) -> MetricCollection:
        """All of :class:`ClassificationScores`; ``count`` is of images."""
        scores = ClassificationScores(self.channels, self.top_k, self.decisions.tuning)
        return MetricCollection({"scores": scores}, compute_groups=False)

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, C] and class indices [N] of the labelled images."""
        return prediction[labelled], target[labelled]

    def update(self, metrics: MetricCollection, prediction: Tensor, target: Tensor, labelled: Tensor) -> None:
        """With the classes that the threshold decides for."""
        logits, target = self.elements(prediction.detach().float(), target, labelled)
        if len(target):
            metrics.update(logits, target, decided=self._decide(logits))

    def update_trivial(self, metrics: MetricCollection, target: Tensor, labelled: Tensor) -> None:
        """The most frequent class, whatever the threshold."""
        logits, target = self.elements(self.trivial(target), target, labelled)
        if len(target):
            metrics.update(logits, target)

    def _decide(self, logits: Tensor) -> Tensor:
        return logits.argmax(1) if self.decisions.plain else self.decisions(logits[:, 1] - logits[:, 0]).long()

    def tune(self, results: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Take the threshold with the highest ``f1``."""
        if not self.decisions.tuning or "histogram" not in results:
            return results
        return {**results, **confusion_scores(self.decisions.choose(results["histogram"][:, 1:], mean_f1)[..., 0])}

    @property
    def untuned(self) -> bool:
        """Whether the threshold is still to be chosen."""
        return self.decisions.untuned

    def thresholds(self) -> dict[str, float]:
        """Of the second class, if it was chosen."""
        return self.decisions.probabilities(self._classes()[1:])

    def _ignorant(self) -> RuntimeError:
        return RuntimeError(f"task '{self.name}' has not learnt from training labels yet: call learn() or restore()")

    def trivial(self, target: Tensor) -> Tensor:
        """The classes' log-frequencies in every row."""
        if self.frequencies is None:
            raise self._ignorant()
        return self.frequencies.to(target.device).log().expand(len(target), -1)

    def decode(self, prediction: Tensor) -> list[Any]:
        """The name of the class that is decided for, per row: the most probable one, or as the threshold says."""
        names = self._classes()
        return [names[index] for index in self._decide(prediction).tolist()]

    def interpret(self, prediction: Tensor) -> Tensor:
        """Probabilities [B, C]."""
        return at_least_float32(prediction).softmax(1)

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """The class with its probability."""
        probabilities = dict(zip(self._classes(), meaning.tolist(), strict=True))
        return Category(value, probabilities[value], probabilities)

    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """The class in words, the predicted one with its probability, green where right and red where wrong."""
        names = self._classes()
        if prediction is None:
            return no_label(axes, image) if target is None else write(axes, image, names[int(target)])
        logits = prediction.detach().float()
        probability, best = logits.softmax(0), int(self._decide(logits[None]))
        text, color = f"{names[best]}\n{100 * float(probability[best]):.0f} %", "black"
        if target is not None:
            color = RIGHT if best == int(target) else WRONG
        return write(axes, image, text, color)

    def plots(self, results: Mapping[str, Tensor]) -> Mapping[str, Callable[[Axes], None]]:
        """``confusion``: how each true class was classified; ``reliability``: how far probabilities can be believed."""
        pictures: dict[str, Callable[[Axes], None]] = {}
        if "confusion" in results:
            pictures["confusion"] = partial(heat_map, results["confusion"], self._classes())
        if "reliability" in results:
            pictures["reliability"] = partial(reliability_diagram, results["reliability"], "accuracy")
        return pictures
