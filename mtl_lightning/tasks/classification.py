"""One class for every image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
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
from mtl_lightning.metrics.classification import ClassificationScores
from mtl_lightning.tasks.base import HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.charts import heat_map
from mtl_lightning.tasks.drawing import RIGHT, WRONG, no_label, write
from mtl_lightning.tasks.results import Category, Result


class Classification(Task):
    """A class index for every image; the target is an int64 scalar in 0 .. C - 1.

    The loss is the cross-entropy, with the weights and the label smoothing (C. Szegedy et al., CVPR 2016, "Rethinking the
    Inception architecture") of ``torch.nn.functional.cross_entropy``, over the labelled images.

    Args:
        classes: the names in the order of their indices; null takes those of the training split.
        class_weights: one weight >= 0 per class; the mean then divides by the weights of the labelled images' classes. Null
            weighs all alike.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes one linear layer on the pooled features.

    Raises:
        ConfigError: classes, weights or smoothing that do not fit each other or their ranges.
    """

    kind: ClassVar[Kind] = "class"
    meaning: ClassVar[str] = "probability of each class [B, C]"
    class_weights: Tensor | None
    frequencies: Tensor | None

    def __init__(
        self,
        classes: list[str] | None = None,
        class_weights: list[float] | None = None,
        label_smoothing: float = 0.0,
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(weight, auxiliary, head)
        if classes is not None and (not classes or len(set(classes)) < len(classes)):
            raise ConfigError(f"classes {classes}: expected at least one name, each once")
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {label_smoothing}, expected a share in [0, 1)")
        self.names = None if classes is None else list(classes)
        self.label_smoothing = label_smoothing
        self.noise = "softmax"
        self.measures = {"accuracy": Measure(True, 1.0), "f1": Measure(True, 1.0), "auroc": Measure(True, 1.0)}
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        if weights is not None and not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
            raise ConfigError(f"class_weights {class_weights}: expected numbers >= 0, not all 0")
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("frequencies", None, persistent=False)
        if classes is not None:
            self._classes()

    def _classes(self) -> list[str]:
        if self.names is None:
            raise ConfigError(f"task '{self.name}' does not know its classes; name them or let a data module find them")
        if self.class_weights is not None and len(self.class_weights) != len(self.names):
            raise ConfigError(
                f"task '{self.name}': class_weights has {len(self.class_weights)} numbers, expected one for each of the "
                f"{len(self.names)} classes in this order: {self.names}"
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
        counts = torch.bincount(indices, minlength=self.channels).float() + 1
        self._remember(counts / counts.sum())

    def _remember(self, frequencies: Tensor) -> None:
        self.frequencies = frequencies if self.frequencies is None else frequencies.to(self.frequencies.device)

    def facts(self) -> dict[str, Any]:
        """``names`` and, once learnt, their ``frequencies``."""
        return {"names": self.names, "frequencies": None if self.frequencies is None else self.frequencies.tolist()}

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over classes and frequencies; raises :class:`CheckpointError` for other classes."""
        if facts.get("names") is None:
            return
        self.same_classes(self.names, facts["names"])
        self.names = list(facts["names"])
        if facts.get("frequencies") is not None:
            self._remember(torch.tensor(facts["frequencies"]))

    def check(self, target: Tensor, where: str) -> None:
        """Refuse what is no class index."""
        if target.ndim or target.is_floating_point() or target.is_complex():
            self.fail(where, f"the label has shape {tuple(target.shape)} and type {target.dtype}, expected one class index")
        names = self._classes()
        if not 0 <= int(target) < len(names):
            self.fail(where, f"class index {int(target)}, expected 0 to {len(names) - 1} ({', '.join(names)})")

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """Cross-entropy; divides by labelled images, or the weights of their classes."""
        prediction = at_least_float32(prediction)
        # Unlabelled rows are replaced before the softmax, whose gradient would turn a NaN of theirs into NaN * 0.
        prediction = torch.where(labelled.unsqueeze(1), prediction, 0.0)
        target = torch.where(labelled, target, 0)
        weights = None if self.class_weights is None else self.class_weights.to(prediction)
        each = F.cross_entropy(prediction, target, weights, reduction="none", label_smoothing=self.label_smoothing)
        mass = torch.ones_like(each) if weights is None else weights[target]
        return {"loss": Term(torch.where(labelled, each, 0.0).sum(), torch.where(labelled, mass, 0.0).sum())}

    def metrics(self) -> MetricCollection:
        """``accuracy``, ``f1``, ``auroc``, ``confusion`` [C, C] and ``count`` (of images)."""
        return MetricCollection({"scores": ClassificationScores(self.channels)}, compute_groups=False)

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, C] and class indices [N] of the labelled images."""
        return prediction[labelled], target[labelled]

    def trivial(self, target: Tensor) -> Tensor:
        """The classes' log-frequencies in every row."""
        if self.frequencies is None:
            raise RuntimeError(f"task '{self.name}' has not learnt from training labels yet: call learn() or restore()")
        return self.frequencies.to(target.device).log().expand(len(target), -1)

    def decode(self, prediction: Tensor) -> list[Any]:
        """The most probable class's name per row."""
        names = self._classes()
        return [names[index] for index in prediction.argmax(1).tolist()]

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
        probability = prediction.detach().float().softmax(0)
        best = int(probability.argmax())
        text, color = f"{names[best]}\n{100 * float(probability[best]):.0f} %", "black"
        if target is not None:
            color = RIGHT if best == int(target) else WRONG
        return write(axes, image, text, color)

    def plots(self, results: Mapping[str, Tensor]) -> Mapping[str, Callable[[Axes], None]]:
        """``confusion``: for each true class, how its images were classified."""
        return {"confusion": partial(heat_map, results["confusion"], self._classes())} if "confusion" in results else {}
