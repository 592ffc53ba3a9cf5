"""Numbers for every image: an age, counts, a box."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor
from torchmetrics import MetricCollection

from mtl_lightning.batch import Kind, TargetSpec
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.features import FeatureSpec
from mtl_lightning.frame import Frame
from mtl_lightning.heads.base import Head
from mtl_lightning.heads.linear import Linear
from mtl_lightning.metrics.regression import RegressionScores
from mtl_lightning.tasks.base import HeadFactory, MaskedLoss, Measure, Task, Term, at_least_float32
from mtl_lightning.tasks.drawing import GUESS, no_label, number, show_image, write
from mtl_lightning.tasks.results import Box, Numbers, Result

BOX = ["x0", "y0", "x1", "y1"]
"""Numbers of these names are a box's corners as fractions of width and height, and are drawn as one."""


class Regression(Task):
    """Real numbers for every image; the target is float32 [D] in real units, NaN where a number is not known.

    The network predicts standardised numbers, (number - mean) / std, and the loss is taken there; metrics and decoded
    predictions are in real units.

    Args:
        names: the numbers' names in the order of the target; null takes those of the training split. Exactly
            ``x0, y0, x1, y1`` are a box in fractions of width and height.
        loss: ``mse``, ``l1`` or ``huber`` (P. J. Huber, Ann. Math. Stat. 1964).
        delta: where ``huber`` turns from square to linear, in standard deviations, > 0.
        mean: taken off the numbers, one for all or one each; null learns it from the training labels.
        std: divided out of the numbers, > 0, one for all or one each; null learns it (a constant number gets 1).
        unit: of the numbers, for tables and pictures.
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes one linear layer on the pooled features.

    Raises:
        ConfigError: names, means or deviations that do not fit each other or their ranges.
    """

    kind: ClassVar[Kind] = "numbers"
    meaning: ClassVar[str] = "numbers in real units [B, D]; of a box, fractions of the width and height that the network sees"
    mean: Tensor | None
    std: Tensor | None
    centre: Tensor | None

    def __init__(
        self,
        names: list[str] | None = None,
        loss: Literal["mse", "l1", "huber"] = "mse",
        delta: float = 1.0,
        mean: list[float] | float | None = None,
        std: list[float] | float | None = None,
        unit: str = "",
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(weight, auxiliary, head)
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ConfigError(f"names {names}: expected at least one name, each once")
        if loss not in ("mse", "l1", "huber"):
            raise ConfigError(f"loss is '{loss}', expected mse, l1 or huber")
        if not 0 < delta < float("inf"):
            raise ConfigError(f"delta is {delta}, expected > 0")
        self.names = None if names is None else list(names)
        self.criterion = loss
        self.delta = delta
        self.unit = unit
        self.given = {"mean": mean, "std": std}
        # Huber's loss of residuals within delta is the Gaussian's.
        self.noise = "laplace" if loss == "l1" else "gaussian"
        errors = ["rmse", "mae"] if loss == "mse" else ["mae", "rmse"]
        self.measures = {key: Measure(False, 0.0, unit) for key in errors} | {"r2": Measure(True, 1.0)}
        for key in ("mean", "std", "centre"):
            self.register_buffer(key, None, persistent=False)
        for key in self.given:
            self._given(key)

    def _given(self, key: str) -> Tensor | None:
        value = self.given[key]
        if value is None:
            return None
        numbers = torch.tensor(value, dtype=torch.float64).reshape(-1)
        if not numbers.isfinite().all() or (key == "std" and not (numbers > 0).all()):
            raise ConfigError(f"{key} is {value}, expected {'numbers > 0' if key == 'std' else 'finite numbers'}")
        if self.names is None:
            return None
        if isinstance(value, list) and len(value) != len(self.names):
            raise ConfigError(
                f"task '{self.name}': {key} has {len(value)} numbers, expected one for each of {', '.join(self.names)}"
            )
        return numbers.expand(len(self.names))

    def _numbers(self) -> list[str]:
        if self.names is None:
            raise ConfigError(f"task '{self.name}' does not know its numbers; name them or let a data module find them")
        return self.names

    def _learnt(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.mean is None or self.std is None or self.centre is None:
            raise RuntimeError(f"task '{self.name}' has not learnt from training labels yet: call learn() or restore()")
        return self.mean, self.std, self.centre

    @property
    def channels(self) -> int:
        """One per number."""
        return len(self._numbers())

    @property
    def target(self) -> TargetSpec:
        """The numbers."""
        return TargetSpec("numbers", (len(self._numbers()),), torch.float32, 0.0)

    def default_head(self, specs: Sequence[FeatureSpec]) -> Head:
        """One linear layer on the pooled features."""
        return Linear(specs, self.channels)

    def learn(self, targets: Iterable[Tensor]) -> None:
        """Learn mean, standard deviation and best constant guess (mse: mean, else median) of each number where it is known."""
        rows = [target.double() for target in targets]
        if not rows:
            raise DataError(f"task '{self.name}': the training split has no label, and numbers are standardised by their labels")
        table = torch.stack(rows)
        mean = table.nanmean(0)
        std = (table - mean).square().nanmean(0).sqrt()
        # Below this a float32 number does not vary; a number that is never known has NaN here and varies as little.
        std = torch.where(std > 1e-7 * mean.abs(), std, 1.0)
        centre = mean if self.criterion == "mse" else table.nanmedian(0).values
        given_mean, given_std = self._given("mean"), self._given("std")
        mean, centre = mean.nan_to_num(0.0), centre.nan_to_num(0.0)
        self._remember(mean if given_mean is None else given_mean, std if given_std is None else given_std, centre)

    def _remember(self, mean: Tensor, std: Tensor, centre: Tensor) -> None:
        device = torch.device("cpu") if self.mean is None else self.mean.device
        self.mean, self.std, self.centre = (numbers.to(device, torch.float32) for numbers in (mean, std, centre))

    def facts(self) -> dict[str, Any]:
        """``names`` and, once learnt, ``mean``, ``std`` and ``centre`` (the best constant guess), all in real units."""
        if self.mean is None:
            return {"names": self.names}
        mean, std, centre = self._learnt()
        return {"names": self.names, "mean": mean.tolist(), "std": std.tolist(), "centre": centre.tolist()}

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over what was learnt, given ``mean`` and ``std`` too; raises :class:`CheckpointError` for other names."""
        if facts.get("names") is None:
            return
        self.same_classes(self.names, facts["names"])
        self.names = list(facts["names"])
        if "mean" in facts:
            self._remember(*(torch.tensor(facts[key], dtype=torch.float64) for key in ("mean", "std", "centre")))

    def check(self, target: Tensor, where: str) -> None:
        """Refuse infinite numbers and a row that knows nothing."""
        names = self._numbers()
        if tuple(target.shape) != (len(names),):
            self.fail(where, f"the label has shape {tuple(target.shape)}, expected ({len(names)},): {', '.join(names)}")
        for name, infinite in zip(names, target.isinf().tolist(), strict=True):
            if infinite:
                self.fail(where, f"'{name}' is infinite, expected a number, or nothing where it is not known")
        if target.isnan().all():
            self.fail(where, "no number is known; leave the whole target out of the row")

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """The error in standard deviations; divides by known numbers."""
        prediction = at_least_float32(prediction)
        mean, std, _ = (part.to(prediction) for part in self._learnt())
        known = labelled.unsqueeze(1) & ~target.isnan()
        truth = torch.where(known, (target.to(prediction) - mean) / std, 0.0)
        prediction = torch.where(known, prediction, 0.0)
        if self.criterion == "mse":
            total = F.mse_loss(prediction, truth, reduction="sum")
        elif self.criterion == "l1":
            total = F.l1_loss(prediction, truth, reduction="sum")
        else:
            total = F.huber_loss(prediction, truth, reduction="sum", delta=self.delta)
        return {"loss": Term(total, known.sum().to(total))}

    def metrics(self) -> MetricCollection:
        """``mae`` and ``rmse`` in real units, ``r2`` and ``count`` (of known numbers)."""
        return MetricCollection({"scores": RegressionScores(self._learnt()[2].tolist())}, compute_groups=False)

    def _real(self, prediction: Tensor) -> Tensor:
        mean, std, _ = (part.to(prediction.device, torch.float32) for part in self._learnt())
        return prediction.detach().float() * std + mean

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers in real units [N, D] of the labelled images, predicted and true, NaN where one is not known."""
        return self._real(prediction[labelled]), target[labelled]

    def trivial(self, target: Tensor) -> Tensor:
        """The best constant guess in every row, standardised."""
        mean, std, centre = (part.to(target.device) for part in self._learnt())
        return ((centre - mean) / std).expand(len(target), -1)

    def decode(self, prediction: Tensor) -> list[Any]:
        """Numbers in real units per row: a list, or the number itself where there is only one."""
        rows = self._real(prediction).tolist()
        return [row[0] for row in rows] if len(self._numbers()) == 1 else rows

    def interpret(self, prediction: Tensor) -> Tensor:
        """Numbers in real units [B, D]."""
        return self._real(prediction)

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """The numbers by name; a box in pixels of the stored picture."""
        numbers = dict(zip(self._numbers(), value if isinstance(value, list) else [value], strict=True))
        if self.names != BOX:
            return Numbers(numbers, self.unit)
        (y0, x0), (y1, x1) = frame.stored(numbers["y0"], numbers["x0"]), frame.stored(numbers["y1"], numbers["x1"])
        return Box(x0, y0, x1, y1)

    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """The numbers in words; a box in the picture, solid where predicted and dashed where true."""
        if prediction is None and target is None:
            return no_label(axes, image)
        guess = None if prediction is None else self._real(prediction[None])[0].tolist()
        truth = None if target is None else target.tolist()
        if self.names == BOX:
            return _draw_boxes(axes, image, guess, truth)
        lines = []
        for column, name in enumerate(self._numbers()):
            label = "" if len(self._numbers()) == 1 else f"{name}: "
            value = truth[column] if guess is None and truth is not None else (guess or [])[column]
            lines.append(label + ("not known" if value != value else f"{number(value)} {self.unit}".rstrip()))
        return write(axes, image, "\n".join(lines))


def _draw_boxes(axes: Axes, image: Tensor, guess: Sequence[float] | None, truth: Sequence[float] | None) -> None:
    show_image(axes, image)
    height, width = image.shape[-2:]
    for box, style, color, under, label in ((truth, "--", "white", "black", "truth"), (guess, "-", GUESS, "white", "prediction")):
        if box is None or any(corner != corner for corner in box):
            continue
        # Pixel centres are at whole numbers, so the picture begins at -0.5.
        corner = (box[0] * width - 0.5, box[1] * height - 0.5)
        size = ((box[2] - box[0]) * width, (box[3] - box[1]) * height)
        patch = Rectangle(corner, *size, fill=False, linestyle=style, edgecolor=color, linewidth=1.5, label=label)
        # On a whole line of the opposite brightness it is seen on every picture.
        outline = Stroke(linewidth=3, foreground=under, dashes={"dash_offset": 0, "dash_list": None})
        patch.set_path_effects([outline, Normal()])
        axes.add_patch(patch)
