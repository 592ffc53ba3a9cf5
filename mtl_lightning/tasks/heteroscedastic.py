"""Numbers for every image, each with how far off it may be."""

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torchmetrics import MetricCollection

from mtl_lightning.errors import ConfigError
from mtl_lightning.frame import Frame
from mtl_lightning.metrics.heteroscedastic import NOMINAL, HeteroscedasticScores
from mtl_lightning.tasks.base import HeadFactory, MaskedLoss, Measure, Term, at_least_float32
from mtl_lightning.tasks.drawing import number, write
from mtl_lightning.tasks.regression import BOX, Regression
from mtl_lightning.tasks.results import Numbers, Result


class Estimate(float):
    """A number with its standard deviation ``std``, both in real units; in text ``31.2 ± 4``.

    Args:
        value: the number.
        std: its standard deviation.
    """

    std: float

    def __new__(cls, value: float, std: float) -> "Estimate":
        """A float that carries another one."""
        estimate = super().__new__(cls, value)
        estimate.std = std
        return estimate

    def __getnewargs__(self) -> tuple[float, float]:  # type: ignore[override]
        return float(self), self.std

    def __format__(self, spec: str) -> str:
        return f"{float(self):{spec}} ± {self.std:.3g}"

    def __str__(self) -> str:
        return f"{self:.6g}"


class HeteroscedasticRegression(Regression):
    """Real numbers with an uncertainty of their own for every image; the target is as in :class:`Regression`.

    The network predicts a mean and a log-variance for each number, both standardised, and the loss is the negative logarithm of
    the normal likelihood (D. A. Nix, A. S. Weigend, ICNN 1994; A. Kendall, Y. Gal, "What uncertainties do we need in Bayesian
    deep learning for computer vision?", NeurIPS 2017). Constants are chosen so that the loss is never below 0, which methods
    that compare losses by size need.

    Where the network is unsure, its mean learns slowly: ``beta`` > 0 weighs each term with its variance to the power of beta,
    through which no gradient goes (M. Seitzer et al., "On the pitfalls of heteroscedastic uncertainty estimation", ICLR 2022).

    Args:
        names: as in :class:`Regression`.
        beta: 0 is the plain likelihood, 1 gives the mean the gradients of the squared error, the paper recommends 0.5.
        min_std: smallest standard deviation that can be predicted, in standard deviations of the labels, > 0.
        max_std: the largest one.
        mean: as in :class:`Regression`.
        std: as in :class:`Regression`.
        unit: of the numbers, for tables and pictures.
        weight: fixed importance, > 0.
        auxiliary: helps training only.
        head: builds the head; null takes one linear layer on the pooled features.

    Raises:
        ConfigError: settings that do not fit each other or their ranges.
    """

    meaning: ClassVar[str] = "means, then standard deviations, in real units [B, 2D]; of a box, fractions as in Regression"
    spread: Tensor | None

    def __init__(
        self,
        names: list[str] | None = None,
        beta: float = 0.0,
        min_std: float = 0.03,
        max_std: float = 30.0,
        mean: list[float] | float | None = None,
        std: list[float] | float | None = None,
        unit: str = "",
        weight: float = 1.0,
        auxiliary: bool = False,
        head: HeadFactory | None = None,
    ) -> None:
        super().__init__(names, "mse", 1.0, mean, std, unit, weight, auxiliary, head)
        if not 0 <= beta <= 1:
            raise ConfigError(f"beta is {beta}, expected a number in [0, 1]")
        if not 0 < min_std < max_std < float("inf"):
            raise ConfigError(f"min_std is {min_std} and max_std {max_std}, expected 0 < min_std < max_std")
        self.beta = beta
        self.limits = (2 * math.log(min_std), 2 * math.log(max_std))
        # A likelihood already, as the cross-entropy is.
        self.noise = "softmax"
        best = (math.log(2 * math.pi) + self.limits[0]) / 2
        self.measures |= {"nll": Measure(False, best), "coverage": Measure(None, NOMINAL)}
        self.register_buffer("spread", None, persistent=False)

    @property
    def channels(self) -> int:
        """Two per number: all means, then all log-variances."""
        return 2 * len(self._numbers())

    def _parts(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = prediction.chunk(2, -1)
        return mean, log_variance.clamp(*self.limits)

    def _spread(self) -> Tensor:
        if self.spread is None:
            raise RuntimeError(f"task '{self.name}' has not learnt from training labels yet: call learn() or restore()")
        return self.spread

    def learn(self, targets: Iterable[Tensor]) -> None:
        """Learn what :class:`Regression` does, and how far the labels are spread around the best constant guess."""
        rows = [target.double() for target in targets]
        super().learn(rows)
        _, std, centre = (part.double() for part in self._learnt())
        spread = ((torch.stack(rows).to(std) - centre) / std).square().nanmean(0).sqrt()
        lowest, highest = (math.exp(limit / 2) for limit in self.limits)
        self._keep(spread.nan_to_num(1.0).clamp(lowest, highest))

    def facts(self) -> dict[str, Any]:
        """As of :class:`Regression`, and ``spread``, the standard deviation around ``centre`` in standardised units."""
        return super().facts() | ({} if self.spread is None else {"spread": self.spread.tolist()})

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over what was learnt."""
        super().restore(facts)
        if "spread" in facts:
            self._keep(torch.tensor(facts["spread"]))

    def _keep(self, spread: Tensor) -> None:
        self.spread = spread.float() if self.spread is None else spread.to(self.spread)

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        """The negative log-likelihood above its least possible value; divides by known numbers."""
        prediction = at_least_float32(prediction)
        mean, std, _ = (part.to(prediction) for part in self._learnt())
        known = labelled.unsqueeze(1) & ~target.isnan()
        truth = torch.where(known, (target.to(prediction) - mean) / std, 0.0)
        guess, log_variance = self._parts(torch.where(torch.cat([known, known], 1), prediction, 0.0))
        each = (log_variance - self.limits[0] + (guess - truth).square() * torch.exp(-log_variance)) / 2
        if self.beta:
            each = each * (self.beta * log_variance.detach()).exp()
        return {"loss": Term(torch.where(known, each, 0.0).sum(), known.sum().to(each))}

    def metrics(self) -> MetricCollection:
        """``mae``, ``rmse``, ``r2``, ``nll``, ``coverage`` of the central 90 % and ``count`` (of known numbers)."""
        return MetricCollection({"scores": HeteroscedasticScores(self._learnt()[2].tolist())}, compute_groups=False)

    def elements(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, D] mean, deviation and standard unit, and true numbers [N, D], in real units, of the labelled images."""
        mean, deviation = self._estimate(prediction[labelled])
        unit = self._learnt()[1].to(mean).expand_as(mean)
        return torch.stack([mean, deviation, unit], 1), target[labelled]

    def _estimate(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in real units, [B, D] each."""
        mean, log_variance = self._parts(prediction.detach().float())
        return self._real(mean), (log_variance / 2).exp() * self._learnt()[1].to(mean)

    def trivial(self, target: Tensor) -> Tensor:
        """The mean of the training labels with their variance in every row, standardised."""
        log_variance = 2 * self._spread().to(target.device).log()
        return torch.cat([super().trivial(target), log_variance.expand(len(target), -1)], 1)

    def decode(self, prediction: Tensor) -> list[Any]:
        """Per row an :class:`Estimate`, or a list of them where there are several numbers."""
        mean, deviation = (part.tolist() for part in self._estimate(prediction))
        rows = [[Estimate(*pair) for pair in zip(*row, strict=True)] for row in zip(mean, deviation, strict=True)]
        return [row[0] for row in rows] if len(self._numbers()) == 1 else rows

    def interpret(self, prediction: Tensor) -> Tensor:
        """Means, then standard deviations, in real units [B, 2D]."""
        return torch.cat(self._estimate(prediction), 1)

    def result(self, value: Any, meaning: Tensor, frame: Frame) -> Result:
        """The means with their deviations; a box by its mean corners, in pixels of the stored picture."""
        means, deviations = (part.tolist() for part in meaning.chunk(2))
        if self.names == BOX:
            return super().result(means, meaning, frame)
        names = self._numbers()
        return Numbers(dict(zip(names, means, strict=True)), self.unit, dict(zip(names, deviations, strict=True)))

    def draw(self, axes: Axes, image: Tensor, prediction: Tensor | None, target: Tensor | None) -> None:
        """The numbers in words with their standard deviations; a box as in :class:`Regression`, by its mean corners."""
        if prediction is None or self.names == BOX:
            return super().draw(axes, image, None if prediction is None else prediction.chunk(2)[0], target)
        names = self._numbers()
        mean, deviation = (part[0].tolist() for part in self._estimate(prediction[None]))
        lines = [
            ("" if len(names) == 1 else f"{name}: ") + f"{number(value)} ± {number(std, 2)} {self.unit}".rstrip()
            for name, value, std in zip(names, mean, deviation, strict=True)
        ]
        return write(axes, image, "\n".join(lines))
