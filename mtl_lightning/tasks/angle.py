"""Angles for every image: headings, hues, times of the day, directions of lines."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from torch import Tensor
from torchmetrics import MetricCollection

from mtl_lightning.batch import Kind, TargetSpec
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.features import FeatureSpec
from mtl_lightning.frame import Frame
from mtl_lightning.heads.base import Head
from mtl_lightning.heads.linear import Linear
from mtl_lightning.metrics.angles import AngleScores, turned
from mtl_lightning.tasks.base import HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.drawing import GREY, GUESS, no_label, show_image, write
from mtl_lightning.tasks.results import Numbers, Result

TURN = {"degrees": 360.0, "radians": 2 * math.pi}
SHORT = 1e-6
"""Added to the squared length of a predicted vector, so that one of length 0 has a gradient."""


class Angle(Task):
    """Angles for every image; the target is float32 [D] in the given unit, any real number, NaN where one is not known.

    The network predicts a vector (cosine, sine) for each angle, whose direction is read, so that there is no jump where the
    circle closes. Where the period is no full turn, angles are scaled to one first. Two losses, of a prediction v and the
    truth's unit vector u:

    - ``vector``: |v - u|^2 / 2, which is 1 - cos(error) where v has length 1. The best v is the mean of the possible u, short
      where the angle is uncertain.
    - ``cosine``: 1 - cos(error) for v of any length, the von Mises distribution's negative log-likelihood up to scale and
      constant (K. V. Mardia, P. E. Jupp, "Directional Statistics", 2000). Vectors may grow long in training, and the longer
      they are the slower they turn.

    Augmentations leave angles as they are, as they do with all numbers: take none that turn or mirror the picture, unless the
    angle does not depend on that.

    Args:
        names: the angles' names in the order of the target; null takes those of the columns.
        unit: of labels and decoded predictions; errors are in degrees in any case.
        loss: ``vector`` or ``cosine``.
        period: after how much the angle is the same again, in its unit, > 0; null is a full turn. 180 degrees are for lines and
            axes, which have no front and back.
        signed: decode to -period / 2 .. period / 2 instead of 0 .. period.
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes one linear layer on the pooled features.

    Raises:
        ConfigError: names or a period that make no sense.
    """

    kind: ClassVar[Kind] = "angle"
    meaning: ClassVar[str] = "angles in the unit [B, D]"
    centre: Tensor | None

    def __init__(
        self,
        names: list[str] | None = None,
        unit: Literal["degrees", "radians"] = "degrees",
        loss: Literal["vector", "cosine"] = "vector",
        period: float | None = None,
        signed: bool = False,
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(weight, auxiliary, head)
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ConfigError(f"names {names}: expected at least one name, each once")
        if unit not in TURN:
            raise ConfigError(f"unit is '{unit}', expected degrees or radians")
        if loss not in ("vector", "cosine"):
            raise ConfigError(f"loss is '{loss}', expected vector or cosine")
        self.criterion = loss
        self.period = TURN[unit] if period is None else period
        if not 0 < self.period < float("inf"):
            raise ConfigError(f"period is {period}, expected a number > 0")
        self.names = None if names is None else list(names)
        self.unit = unit
        self.signed = signed
        self.degrees = 360.0 / TURN[unit]
        # Both losses have the half that the weight of squared errors would have.
        self.noise = "softmax"
        self.measures = {"mean": Measure(False, 0.0, "°"), "median": Measure(False, 0.0, "°")}
        self.register_buffer("centre", None, persistent=False)

    def _angles(self) -> list[str]:
        if self.names is None:
            raise ConfigError(f"task '{self.name}' does not know its angles; name them or let a data module find them")
        return self.names

    @property
    def channels(self) -> int:
        """Two per angle: all cosines, then all sines."""
        return 2 * len(self._angles())

    @property
    def target(self) -> TargetSpec:
        """The angles."""
        return TargetSpec("angle", (len(self._angles()),), torch.float32, 0.0)

    def default_head(self, specs: Sequence[FeatureSpec]) -> Head:
        """One linear layer on the pooled features."""
        return Linear(specs, self.channels)

    def learn(self, targets: Iterable[Tensor]) -> None:
        """Learn each angle's circular median, the constant with the least mean absolute error."""
        rows = [target.double() for target in targets]
        if not rows:
            raise DataError(f"task '{self.name}': the training split has no label to learn the usual angle from")
        columns = torch.stack(rows).unbind(1)
        self._remember(torch.stack([circular_median(column[~column.isnan()], self.period) for column in columns]))

    def _remember(self, centre: Tensor) -> None:
        self.centre = centre.float() if self.centre is None else centre.to(self.centre)

    def facts(self) -> dict[str, Any]:
        """``names`` and, once learnt, ``centre`` (the circular medians, in the unit)."""
        return {"names": self.names} | ({} if self.centre is None else {"centre": self.centre.tolist()})

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over what was learnt; raises :class:`CheckpointError` for other names."""
        if facts.get("names") is None:
            return
        self.same_classes(self.names, facts["names"])
        self.names = list(facts["names"])
        if "centre" in facts:
            self._remember(torch.tensor(facts["centre"], dtype=torch.float64))

    def check(self, target: Tensor, where: str) -> None:
        """Refuse infinite angles and a row that knows nothing."""
        names = self._angles()
        if tuple(target.shape) != (len(names),):
            self.fail(where, f"the label has shape {tuple(target.shape)}, expected ({len(names)},): {', '.join(names)}")
        for name, infinite in zip(names, target.isinf().tolist(), strict=True):
            if infinite:
                self.fail(where, f"'{name}' is infinite, expected an angle, or nothing where it is not known")
        if target.isnan().all():
            self.fail(where, "no angle is known; leave the whole target out of the row")

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """Half the squared distance of the vectors, or 1 - cos of the error; divides by known angles."""
        known = labelled.unsqueeze(1) & ~target.isnan()
        prediction = torch.where(torch.cat([known, known], 1), at_least_float32(prediction), 0.0)
        cosine, sine = prediction.chunk(2, 1)
        truth = torch.where(known, target, 0.0).to(prediction) * (2 * math.pi / self.period)
        if self.criterion == "vector":
            each = ((cosine - truth.cos()).square() + (sine - truth.sin()).square()) / 2
        else:
            length = (cosine.square() + sine.square() + SHORT).sqrt()
            each = 1 - (cosine * truth.cos() + sine * truth.sin()) / length
        return {"loss": Term(torch.where(known, each, 0.0).sum(), known.sum().to(each))}

    def metrics(self) -> MetricCollection:
        """``mean`` and ``median`` absolute error in degrees, and ``count`` (of known angles)."""
        return MetricCollection({"scores": AngleScores(self.period * self.degrees)}, compute_groups=False)

    def _read(self, prediction: Tensor) -> Tensor:
        """The angles [..., D] in the unit, in 0 .. period or around 0."""
        cosine, sine = prediction.detach().float().chunk(2, -1)
        angle = torch.atan2(sine, cosine) * (self.period / (2 * math.pi))
        return turned(angle, self.period) if self.signed else torch.remainder(angle, self.period)

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Degrees [N, D] of the labelled images, predicted and true, NaN where one is not known."""
        return self._read(prediction[labelled]) * self.degrees, target[labelled] * self.degrees

    def trivial(self, target: Tensor) -> Tensor:
        """The circular medians as vectors in every row."""
        if self.centre is None:
            raise RuntimeError(f"task '{self.name}' has not learnt from training labels yet: call learn() or restore()")
        turn = self.centre.to(target.device) * (2 * math.pi / self.period)
        return torch.cat([turn.cos(), turn.sin()]).expand(len(target), -1)

    def decode(self, prediction: Tensor) -> list[Any]:
        """Angles in the unit per row: a list, or the number itself where there is only one."""
        rows = self._read(prediction).tolist()
        return [row[0] for row in rows] if len(self._angles()) == 1 else rows

    def interpret(self, prediction: Tensor) -> Tensor:
        """Angles in the unit [B, D]."""
        return self._read(prediction)

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """The angles by name."""
        return Numbers(dict(zip(self._angles(), meaning.tolist(), strict=True)), self.unit)

    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """One angle as a hand over the paled picture (0 to the right, counterclockwise; the truth grey), several in words."""
        if prediction is None and target is None:
            return no_label(axes, image)
        guess = None if prediction is None else self._read(prediction).tolist()
        truth = None if target is None else target.tolist()
        sign = "°" if self.unit == "degrees" else " rad"
        shown = guess if guess is not None else truth or []
        names = self._angles()
        words = ["not known" if value != value else f"{value:.3g}{sign}" for value in shown]
        if len(names) > 1:
            return write(axes, image, "\n".join(f"{name}: {word}" for name, word in zip(names, words, strict=True)))
        if shown[0] != shown[0]:
            return write(axes, image, words[0])
        return self._dial(axes, image, words[0], guess, truth)

    def _dial(self, axes: Axes, image: Tensor, words: str, guess: list[float] | None, truth: list[float] | None) -> None:
        show_image(axes, image, dim=0.6)
        height, width = image.shape[-2:]
        x, y, radius = (width - 1) / 2, (height - 1) / 2, 0.4 * max(height, width)
        axes.add_patch(Circle((x, y), radius, fill=False, edgecolor=GREY, linewidth=1))
        for angle, color, line, label in ((truth, GREY, 4.0, "truth"), (guess, GUESS, 2.0, "prediction")):
            if angle is None:
                continue
            turn = math.radians(angle[0] * self.degrees)
            right, up = radius * math.cos(turn), radius * math.sin(turn)
            # A line without front and back goes through the middle.
            start = (x - right, y + up) if self.period * self.degrees <= 180 else (x, y)
            ends = [start[0], x + right], [start[1], y - up]
            axes.plot(*ends, color=color, linewidth=line, solid_capstyle="round", label=label)
        axes.text(0.03, 0.03, words, transform=axes.transAxes, fontsize=8, ha="left", va="bottom")


def circular_median(angles: Tensor, period: float) -> Tensor:
    """The one of the angles whose mean distance to all of them, the shorter way around, is least; 0 where there is none.

    Args:
        angles: [N], any real numbers, none NaN.
        period: after how much they repeat.

    Returns:
        A float64 scalar in 0 .. period.
    """
    if not len(angles):
        return torch.zeros((), dtype=torch.float64)
    ordered = torch.remainder(angles.double() / period, 1.0).sort().values
    size, start = len(ordered), torch.arange(len(ordered))
    # Twice around: from each angle on, those up to half a turn ahead are reached forwards and the others backwards.
    twice = torch.cat([ordered, ordered + 1])
    sums = torch.cat([twice.new_zeros(1), twice.cumsum(0)])
    middle = torch.searchsorted(twice, ordered + 0.5, right=True)
    forwards = sums[middle] - sums[start] - (middle - start) * ordered
    backwards = (start + size - middle) * (ordered + 1) - (sums[start + size] - sums[middle])
    median: Tensor = ordered[(forwards + backwards).argmin()] * period
    return median
