"""The task contract: everything the framework knows about one kind of label."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from mtl_lightning.batch import Kind, TargetSpec
from mtl_lightning.errors import CheckpointError, ConfigError, DataError
from mtl_lightning.features import FeatureSpec
from mtl_lightning.frame import Frame
from mtl_lightning.heads.base import Head
from mtl_lightning.tasks.results import Result, Value

HeadFactory = Callable[[Sequence[FeatureSpec], int], Head]
"""Builds a head from the specs of the feature pyramid (finest first) and the number of output channels."""


class Term(NamedTuple):
    """One part of a task's loss, summed and not averaged, so that it adds up over batches and ranks.

    Attributes:
        total: sum over the labelled elements, scalar with gradient.
        denominator: what its mean divides by (labelled pixels, images, class-weight mass), scalar without gradient.
        coefficient: its factor in the task's loss.
    """

    total: Tensor
    denominator: Tensor
    coefficient: float = 1.0


MaskedLoss = Mapping[str, Term]
"""The named terms of a task's loss; the loss is the sum of coefficient * total / denominator."""


class Measure(NamedTuple):
    """How to read a metric.

    Attributes:
        higher_is_better: the direction; None where ``best`` is to be met, neither exceeded nor missed.
        best: the value of a perfect model, against which skill over the trivial predictor is taken.
        unit: shown in tables; may be empty.
    """

    higher_is_better: bool | None
    best: float
    unit: str = ""


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision becomes float32, so that losses are exact under mixed precision; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Count(Metric):
    """The number of labelled elements that were evaluated (images or pixels or entries)."""

    full_state_update = False
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add the rows of ``target``."""
        self.count += len(target)

    def compute(self) -> Tensor:
        """The sum."""
        return self.count


class Task(nn.Module):
    """One kind of label: its checks, its head, its masked loss, its metrics, its decoding and its picture.

    A task holds no head: the model does. What a task learns from the training labels (class names, mean, trivial
    prediction) is in its ``state_dict`` and so in every checkpoint.

    Args:
        weight: fixed importance, > 0; multiplies the loss before any weighting method sees it.
        auxiliary: helps training only: kept out of score, model selection and export.
        head: builds the head; None takes the task's default.
    """

    kind: ClassVar[Kind]
    """How a data module reads the label and how it moves under augmentation."""
    measures: dict[str, Measure]
    """The metrics that have a direction, the first one decides the score."""
    noise: Literal["gaussian", "laplace", "softmax"] = "gaussian"
    """The likelihood that the loss belongs to, for uncertainty weighting."""
    terms: tuple[str, ...] = ("loss",)
    """The names of the loss terms."""
    meaning: ClassVar[str] = "raw"
    """What :meth:`interpret` gives, for the description beside an exported model."""
    balanced: bool = False
    """Whether its loss weighs rare labels up as the training labels say."""
    names: list[str] | None = None
    """The names of the classes, labels or numbers; where None a data module sets what it finds in the training split."""

    def __init__(self, weight: float = 1.0, auxiliary: bool = False, head: HeadFactory | None = None) -> None:
        super().__init__()
        if not weight > 0:
            raise ConfigError(f"weight is {weight}, expected > 0; leave a task out with model.only")
        self.name = type(self).__name__.lower()
        self.weight = weight
        self.auxiliary = auxiliary
        self.head = head

    @property
    @abstractmethod
    def channels(self) -> int:
        """Output channels of the head."""

    @property
    @abstractmethod
    def target(self) -> TargetSpec:
        """What the target looks like in a batch."""

    @abstractmethod
    def default_head(self, specs: Sequence[FeatureSpec]) -> Head:
        """The head used when the configuration names none."""

    def build_head(self, specs: Sequence[FeatureSpec]) -> Head:
        """The configured head over a feature pyramid (finest first)."""
        head = self.head(specs, self.channels) if self.head is not None else self.default_head(specs)
        if head.dense is not None and head.dense != self.target.dense:
            wanted = "each pixel" if self.target.dense else "each image"
            raise ConfigError(
                f"model.tasks.{self.name}.init_args.head: {type(head).__name__} predicts for each "
                f"{'pixel' if head.dense else 'image'}, but {type(self).__name__} has a label for {wanted}; choose another head"
            )
        return head

    @abstractmethod
    def learn(self, targets: Iterable[Tensor]) -> None:
        """Learn from the labels of the training split: standardisation and the trivial prediction.

        Args:
            targets: one target per labelled row, as in a sample (a seeded part of them where labels are files).
        """

    def check(self, target: Tensor, where: str) -> None:
        """Raise :class:`DataError` if one row's target is not allowed.

        Args:
            target: one row's target, as in a sample.
            where: file and row, for the message.
        """

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """The loss terms of the labelled elements.

        Without a labelled element every total is an exact 0 that is still attached to ``prediction``.

        Args:
            prediction: [B, channels, ...], raw as the head gives it.
            target: [B, ...] as :attr:`target` describes it.
            labelled: bool [B].
        """

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """New metrics, updated with what :meth:`elements` returns; they must contain ``count``."""

    @abstractmethod
    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """The labelled elements alone, as the metrics want them; the first dimension counts them."""

    @abstractmethod
    def trivial(self, target: Tensor) -> Tensor:
        """What the best constant guess predicts, shaped like a raw prediction for ``target``."""

    @abstractmethod
    def decode(self, prediction: Tensor) -> list[Any]:
        """Raw predictions [B, channels, ...] for people: a name, a number, a mask, metres; one per row."""

    def interpret(self, prediction: Tensor) -> Tensor:
        """What raw predictions mean, as one tensor that can be exported: probabilities, real units, unit vectors.

        Args:
            prediction: [B, channels, ...], raw as the head gives it.

        Returns:
            float32 [B, ...]; this base class returns the raw prediction.
        """
        return at_least_float32(prediction)

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """One row's prediction as a plain object.

        Args:
            value: one of what :meth:`decode` returns; of a dense task a tensor at the stored picture's size.
            meaning: the row of :meth:`interpret`, at the network's size.
            frame: where the network's pixels are in the stored picture.
        """
        return Value(value)

    @abstractmethod
    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """Draw one row: the prediction if given, else the target if given, else that there is no label.

        Artists with a label are explained in one legend for all rows.

        Args:
            axes: where to draw.
            image: [C, H, W] in 0..1.
            prediction: raw, without the batch dimension.
            target: as in a sample.
        """

    def keys(self) -> list[str]:
        """The names of all numbers that are logged of a split, the count aside."""
        return ["loss", *self.measures]

    def plots(self, results: Mapping[str, Tensor]) -> Mapping[str, Callable[[Axes], None]]:
        """Extra pictures of a split's results, by name (a confusion matrix…)."""
        return {}

    def update(self, metrics: MetricCollection, prediction: Tensor, target: Tensor, labelled: Tensor) -> None:
        """Feed the labelled elements of a batch to metrics; no label, no update."""
        chosen = self.elements(prediction.detach().float(), target, labelled)
        if len(chosen[1]):
            metrics.update(*chosen)

    def update_trivial(self, metrics: MetricCollection, target: Tensor, labelled: Tensor) -> None:
        """The same for what the best constant guess predicts."""
        self.update(metrics, self.trivial(target), target, labelled)

    def tune(self, results: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Choose what is chosen on the validation split (thresholds) and keep it; returns the results with the choice.

        Called on every process with the same results of the whole split, before a checkpoint is written.
        """
        return results

    @property
    def untuned(self) -> bool:
        """Whether :meth:`tune` has something to choose that has not been chosen yet."""
        return False

    def thresholds(self) -> dict[str, float]:
        """The probabilities chosen on the validation split, by the name of what they decide, for tables."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What was learnt from the training labels and chosen on the validation split, as plain numbers, strings and lists."""
        return {}

    def describe(self) -> dict[str, Any]:
        """All that a reader of predictions needs to know, as plain values: kind, names, unit and what was learnt."""
        words = {"class": type(self).__name__, "kind": self.kind, "auxiliary": self.auxiliary, "output": self.meaning}
        return words | {"unit": getattr(self, "unit", "")} | self.facts()

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over what :meth:`facts` returned in another run."""

    def get_extra_state(self) -> dict[str, Any]:
        """Part of ``state_dict``."""
        return {"kind": self.kind} | self.facts()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Counterpart of :meth:`get_extra_state`."""
        self.restore(state)

    def fail(self, where: str, problem: str) -> None:
        """Raise the error of a bad target."""
        raise DataError(f"{where}, task '{self.name}': {problem}")

    def same_classes(self, mine: Sequence[str] | None, theirs: Sequence[str]) -> None:
        """Raise :class:`CheckpointError` if a checkpoint's classes are not the data's."""
        if mine is not None and list(mine) != list(theirs):
            raise CheckpointError(
                f"task '{self.name}': the checkpoint was trained on classes {list(theirs)}, this run has {list(mine)}; "
                "use the data and class names of the checkpoint's run"
            )
