"""A grade for every image: classes with an order, such as severities or ratings."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor
from torchmetrics import MetricCollection

from mtl_lightning.batch import Kind, TargetSpec
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.features import FeatureSpec
from mtl_lightning.frame import Frame
from mtl_lightning.heads.base import Head
from mtl_lightning.heads.linear import Linear
from mtl_lightning.metrics.ordinal import OrdinalScores
from mtl_lightning.tasks.base import HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.charts import heat_map
from mtl_lightning.tasks.drawing import RIGHT, WRONG, no_label, write
from mtl_lightning.tasks.results import Category, Result


class Ordinal(Task):
    """A grade for every image; the target is an int64 scalar in 0 .. K - 1, and being off by one is better than by two.

    The network answers K - 1 questions, "is the grade above the k-th?", with a logit each (E. Frank, M. Hall, "A simple
    approach to ordinal classification", ECML 2001; Z. Niu et al., "Ordinal regression with multiple output CNN for age
    estimation", CVPR 2016). The loss is the binary cross-entropy, averaged over the questions and the labelled images.

    The predicted grade is the number of questions answered with yes, as by Niu et al. Answers may contradict each other (no to
    the first, yes to the second); sorting the probabilities makes them consistent and never a worse estimate (V. Chernozhukov,
    I. Fernandez-Val, A. Galichon, Econometrica 2010), and the predicted grade is the median of the sorted ones.

    Args:
        classes: the grades' names from the lowest to the highest; null takes those of the training split, which must be
            numbers then.
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes one linear layer on the pooled features.

    Raises:
        ConfigError: fewer than two grades, or names whose order cannot be told.
    """

    kind: ClassVar[Kind] = "class"
    meaning: ClassVar[str] = "probability of each grade [B, K]"
    above: Tensor | None

    def __init__(
        self,
        classes: list[str] | None = None,
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(weight, auxiliary, head)
        if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
            raise ConfigError(f"classes {classes}: expected at least two grades from the lowest to the highest, each once")
        self.names = None if classes is None else list(classes)
        self.ordered = classes is not None
        self.noise = "softmax"
        self.measures = {"mae": Measure(False, 0.0, "grades"), "accuracy": Measure(True, 1.0), "kappa": Measure(True, 1.0)}
        self.register_buffer("above", None, persistent=False)

    def _grades(self) -> list[str]:
        key = f"model.tasks.{self.name}.init_args.classes"
        if self.names is None:
            raise ConfigError(f"task '{self.name}' does not know its grades; list them under {key}")
        if len(self.names) < 2:
            raise ConfigError(f"task '{self.name}' has the grades {self.names}, expected at least two; list all under {key}")
        if not self.ordered and not all(re.fullmatch(r"-?\d+(\.\d+)?", name, re.ASCII) for name in self.names):
            raise ConfigError(
                f"task '{self.name}': the order of the grades {', '.join(self.names)} cannot be told from their names; list them "
                f"from the lowest to the highest under {key}"
            )
        return self.names

    @property
    def channels(self) -> int:
        """One logit for each grade but the lowest."""
        return len(self._grades()) - 1

    @property
    def target(self) -> TargetSpec:
        """A grade's index."""
        return TargetSpec("class", (), torch.long, 0)

    def default_head(self, specs: Sequence[FeatureSpec]) -> Head:
        """One linear layer on the pooled features."""
        return Linear(specs, self.channels)

    def learn(self, targets: Iterable[Tensor]) -> None:
        """Learn the share of labels above each grade but the highest."""
        grades = torch.tensor([int(target) for target in targets], dtype=torch.long)
        if not len(grades):
            raise DataError(f"task '{self.name}': the training split has no label to learn the usual grade from")
        self._remember((grades[:, None] > torch.arange(self.channels)).double().mean(0))

    def _remember(self, above: Tensor) -> None:
        self.above = above.float() if self.above is None else above.to(self.above)

    def facts(self) -> dict[str, Any]:
        """``names`` and, once learnt, the share ``above`` each grade but the highest."""
        return {"names": self.names, "above": None if self.above is None else self.above.tolist()}

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over grades and shares; raises :class:`CheckpointError` for other grades."""
        if facts.get("names") is None:
            return
        self.same_classes(self.names, facts["names"])
        # A checkpoint's grades have an order already.
        self.names, self.ordered = list(facts["names"]), True
        if facts.get("above") is not None:
            self._remember(torch.tensor(facts["above"], dtype=torch.float64))

    def check(self, target: Tensor, where: str) -> None:
        """Refuse what is no grade's index."""
        names = self._grades()
        if target.ndim or target.is_floating_point() or target.is_complex():
            self.fail(where, f"the label has shape {tuple(target.shape)} and type {target.dtype}, expected one grade's index")
        if not 0 <= int(target) < len(names):
            self.fail(where, f"grade {int(target)}, expected 0 to {len(names) - 1} ({', '.join(names)})")

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """Binary cross-entropy, the mean over the questions; divides by labelled images."""
        # Unlabelled rows are replaced before the loss, whose gradient would turn a NaN of theirs into NaN * 0.
        logits = torch.where(labelled.unsqueeze(1), at_least_float32(prediction), 0.0)
        answers = (target.unsqueeze(1) > torch.arange(self.channels, device=target.device)).to(logits)
        each = F.binary_cross_entropy_with_logits(logits, answers, reduction="none").mean(1)
        return {"loss": Term(torch.where(labelled, each, 0.0).sum(), labelled.sum().to(each))}

    def metrics(self) -> MetricCollection:
        """``mae`` in grades, ``accuracy``, ``kappa``, ``confusion`` [K, K] and ``count`` (of images)."""
        return MetricCollection({"scores": OrdinalScores(self.channels + 1)}, compute_groups=False)

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true grades [N] of the labelled images."""
        return _grade(prediction[labelled]), target[labelled]

    def trivial(self, target: Tensor) -> Tensor:
        """The shares as logits in every row; the grade that is read from them is the median."""
        if self.above is None:
            raise RuntimeError(f"task '{self.name}' has not learnt from training labels yet: call learn() or restore()")
        return self.above.to(target.device).logit(1e-6).expand(len(target), -1)

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Of each grade, [B, K], none negative, each row's sum is 1; sorting makes raw predictions [B, K - 1] consistent."""
        above = at_least_float32(prediction).sigmoid().sort(1, descending=True).values
        steps = torch.cat([above.new_ones(len(above), 1), above, above.new_zeros(len(above), 1)], 1)
        return steps[:, :-1] - steps[:, 1:]

    def decode(self, prediction: Tensor) -> list[Any]:
        """The name of the median grade per row."""
        names = self._grades()
        return [names[grade] for grade in _grade(prediction).tolist()]

    def interpret(self, prediction: Tensor) -> Tensor:
        """Probabilities [B, K]."""
        return self.probabilities(prediction)

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """The grade with its probability."""
        probabilities = dict(zip(self._grades(), meaning.tolist(), strict=True))
        return Category(value, probabilities[value], probabilities)

    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """The grade in words, the predicted one with its probability, green where right and red where wrong."""
        names = self._grades()
        if prediction is None:
            return no_label(axes, image) if target is None else write(axes, image, names[int(target)])
        grade = int(_grade(prediction[None]))
        probability = float(self.probabilities(prediction[None])[0, grade])
        color = "black" if target is None else RIGHT if grade == int(target) else WRONG
        return write(axes, image, f"{names[grade]}\n{100 * probability:.0f} %", color)

    def plots(self, results: Mapping[str, Tensor]) -> Mapping[str, Callable[[Axes], None]]:
        """``confusion``: for each true grade, how its images were graded."""
        return {"confusion": partial(heat_map, results["confusion"], self._grades())} if "confusion" in results else {}


def _grade(prediction: Tensor) -> Tensor:
    return (prediction > 0).sum(1)
