"""Pictures mixed in pairs with both their labels: MixUp and CutMix for partly labelled batches.

A row is mixed with a row of its batch that has labels of the SAME tasks and the same inputs, and whose picture is of the same
size; one without such a partner stays as it is, and so does one without any label. A task's loss on a mixed batch is
share * L(prediction, own labels) + (1 - share) * L(prediction, the partners' labels), totals and denominators alike, so that
no label is lost, and elements that one of the two lacks (pixels, entries) are missing on its side alone.

What is drawn depends on (seed, epoch, step): whether and how much to mix is the same on all processes, who is whose partner
also depends on the process.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtl_lightning.batch import Batch, TargetSpec
from mtl_lightning.errors import ConfigError
from mtl_lightning.tasks.base import MaskedLoss, Task, Term


def masked_loss(task: Task, prediction: Tensor, batch: Batch) -> MaskedLoss:
    """A task's loss terms on a batch, be it mixed or not."""
    target, labelled = batch.targets[task.name], batch.labelled[task.name]
    own = task.loss(prediction, target, labelled)
    if task.name not in batch.partner:
        return own
    theirs, share = task.loss(prediction, target[batch.partner[task.name]], labelled), batch.share
    return {
        key: Term(
            share * term.total + (1 - share) * theirs[key].total,
            share * term.denominator + (1 - share) * theirs[key].denominator,
            term.coefficient,
        )
        for key, term in own.items()
    }


class Mixing(ABC):
    """Mixes the rows of training batches in pairs.

    Args:
        alpha: the row's own share is drawn from Beta(alpha, alpha) once a step, > 0; small ones mix little.
        probability: of mixing a batch at all, 0..1.

    Raises:
        ConfigError: a number out of its range.
    """

    def __init__(self, alpha: float, probability: float) -> None:
        if not 0 < alpha < float("inf"):
            raise ConfigError(f"data.init_args.mixing: alpha is {alpha}, expected > 0")
        if not 0 <= probability <= 1:
            raise ConfigError(f"data.init_args.mixing: probability is {probability}, expected 0 to 1")
        self.alpha, self.probability = alpha, probability

    def __call__(self, batch: Batch, targets: Mapping[str, TargetSpec], key: tuple[int, int, int], rank: int = 0) -> Batch:
        """The mixed batch, or ``batch`` itself where nothing is to be mixed.

        Args:
            batch: on the CPU; not changed.
            targets: what each task's target looks like.
            key: seed, epoch and step.
            rank: of this process.
        """
        common, own = (np.random.default_rng([*key, who]) for who in (0, rank + 1))
        if common.random() >= self.probability:
            return batch
        share = float(common.beta(self.alpha, self.alpha))
        partner = self._pairs(batch, targets, own)
        if bool((partner == torch.arange(len(batch))).all()):
            return batch
        return self.mix(batch, targets, share, partner, common)

    @abstractmethod
    def mix(
        self, batch: Batch, targets: Mapping[str, TargetSpec], share: float, partner: Tensor, random: np.random.Generator
    ) -> Batch:
        """Mix each row with its partner (int64 [B], itself where a row is not mixed)."""

    def excluded(self, targets: Mapping[str, TargetSpec]) -> set[str]:
        """The tasks whose labelled rows are never mixed."""
        return set()

    def survey(self, labelled: Mapping[str, np.ndarray], targets: Mapping[str, TargetSpec], batch_size: int) -> str:
        """How many training rows will be mixed, in words.

        Raises:
            ConfigError: none can ever be.
        """
        tasks, out = list(labelled), self.excluded(targets)
        rows = np.stack([labelled[task] for task in tasks], 1)
        fit = rows.any(1) & ~rows[:, [task in out for task in tasks]].any(1)
        _, counts = np.unique(rows[fit], axis=0, return_counts=True)
        # The chance that at least one of the batch's other rows has the same labels.
        meets = 1 - (1 - (counts - 1) / max(1, len(rows) - 1)) ** (batch_size - 1)
        expected = self.probability * float((counts * meets).sum()) / max(1, int(rows.any(1).sum()))
        name = type(self).__name__
        if self.probability and not expected:
            why = f"all have a label of {', '.join(sorted(out))}" if out and not fit.any() else "no two have the same labels"
            raise ConfigError(f"data.init_args.mixing: {name} can mix no training row ({why}); {self.hint()}")
        return f"{name}: about {100 * expected:.0f} % of the labelled rows will be mixed (partners must have the same labels)"

    def hint(self) -> str:
        """What to do where no row can be mixed."""
        return "leave mixing out"

    def _pairs(self, batch: Batch, targets: Mapping[str, TargetSpec], random: np.random.Generator) -> Tensor:
        """Within each group of rows with the same labels, inputs and extent, each row's partner is the next of a drawn round."""
        tasks, out = list(targets), self.excluded(targets)
        rows = torch.stack([batch.labelled[task] for task in tasks], 1).tolist()
        given = torch.stack(list(batch.given.values()), 1).tolist() if batch.given else [()] * len(rows)
        groups: dict[tuple[object, ...], list[int]] = {}
        for row, has in enumerate(rows):
            if any(has) and not any(mine and task in out for task, mine in zip(tasks, has, strict=True)):
                groups.setdefault((*has, *given[row], batch.extent(row)), []).append(row)
        partner = torch.arange(len(rows))
        for members in groups.values():
            order = torch.tensor(members)[torch.from_numpy(random.permutation(len(members)))]
            partner[order] = order.roll(1)
        return partner


class MixUp(Mixing):
    """Weighted means of two pictures (H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, ICLR 2018, "mixup").

    Every kind of label takes part by the loss of both: classes, numbers and boxes as well as pixels.

    Args:
        alpha: the row's own share is drawn from Beta(alpha, alpha) once a step, > 0; small ones mix little.
        probability: of mixing a batch at all, 0..1.

    Raises:
        ConfigError: a number out of its range.
    """

    def __init__(self, alpha: float = 0.2, probability: float = 1.0) -> None:
        super().__init__(alpha, probability)

    def mix(
        self, batch: Batch, targets: Mapping[str, TargetSpec], share: float, partner: Tensor, random: np.random.Generator
    ) -> Batch:
        """Blend the pictures."""
        rows = (partner != torch.arange(len(partner))).nonzero()[:, 0]
        inputs = {name: picture.clone() for name, picture in batch.inputs.items()}
        for name, picture in inputs.items():
            picture[rows] = torch.lerp(batch.inputs[name][partner[rows]], picture[rows], share)
        return replace(batch, inputs=inputs, partner=dict.fromkeys(targets, partner), share=share)


class CutMix(Mixing):
    """A rectangle of one picture pasted into another (S. Yun et al., ICCV 2019, "CutMix").

    Masks, depth and normals get the partner's pixels along with it; classes and multi-labels count by the area. A number or a
    box (Regression) need not be right any more for what is left of its picture: rows with such a label are not mixed, unless
    ``numbers`` says so. Where pictures of a batch differ in size, those of the most frequent size are mixed, because all rows
    of a step have the same share.

    Args:
        alpha: the share left of a picture is drawn from Beta(alpha, alpha) once a step, > 0.
        probability: of mixing a batch at all, 0..1.
        numbers: ``keep`` leaves rows with a label of a Regression task unmixed; ``blend`` mixes them, and counts their numbers
            by the area as well.

    Raises:
        ConfigError: a number out of its range.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 0.5, numbers: Literal["keep", "blend"] = "keep") -> None:
        super().__init__(alpha, probability)
        self.numbers = numbers

    def excluded(self, targets: Mapping[str, TargetSpec]) -> set[str]:
        """Tasks of numbers, unless they are blended."""
        return {name for name, spec in targets.items() if spec.kind == "numbers"} if self.numbers == "keep" else set()

    def hint(self) -> str:
        """What to do where no row can be mixed."""
        return "set numbers to blend, take MixUp, or leave mixing out"

    def mix(
        self, batch: Batch, targets: Mapping[str, TargetSpec], share: float, partner: Tensor, random: np.random.Generator
    ) -> Batch:
        """Paste the rectangle."""
        rows = (partner != torch.arange(len(partner))).nonzero()[:, 0].tolist()
        extents = {row: batch.extent(row) for row in rows}
        height, width = Counter(extents.values()).most_common(1)[0][0]
        top, bottom, left, right = _rectangle(height, width, share, random)
        chosen = torch.tensor([row for row in rows if extents[row] == (height, width)])
        share = 1 - (bottom - top) * (right - left) / (height * width)
        whole = torch.arange(len(partner))
        whole[chosen] = partner[chosen]

        def paste(tensor: Tensor) -> Tensor:
            result = tensor.clone()
            result[chosen, ..., top:bottom, left:right] = tensor[whole[chosen], ..., top:bottom, left:right]
            return result

        dense = {name for name, spec in targets.items() if spec.dense}
        pasted = {name: paste(target) if name in dense else target for name, target in batch.targets.items()}
        others = dict.fromkeys((name for name in targets if name not in dense), whole)
        inputs = {name: paste(picture) for name, picture in batch.inputs.items()}
        return replace(batch, inputs=inputs, targets=pasted, partner=others, share=share)


def _rectangle(height: int, width: int, share: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a part of 1 - share of the area around a random centre, clipped to the picture."""
    side = (1 - share) ** 0.5
    half = round(height * side) / 2, round(width * side) / 2
    y, x = random.random() * height, random.random() * width
    top, bottom = max(0, round(y - half[0])), min(height, round(y + half[0]))
    left, right = max(0, round(x - half[1])), min(width, round(x + half[1]))
    return top, bottom, left, right
