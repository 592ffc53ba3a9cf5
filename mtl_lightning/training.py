"""A training step from the batch to ``.grad``, as any trainer may take it. Pure torch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtl_lightning.batch import Batch
from mtl_lightning.errors import TrainingError
from mtl_lightning.gradients import EngineOptions, GradientEngine
from mtl_lightning.mixing import masked_loss
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.objective import Losses, Reduce, block_of_rows, in_blocks, normalize, weigh
from mtl_lightning.penalties import Penalty, penalties_of
from mtl_lightning.probe import BatchProbe, Revisit
from mtl_lightning.tasks.base import MaskedLoss, Task
from mtl_lightning.weighting import Weighting


class Surroundings(NamedTuple):
    """What a step needs of who trains.

    Attributes:
        reduce: sums a tensor over processes.
        world: their number.
        rank: which of them this is.
        report: takes a sentence for the user.
        frozen: the parameters that do not learn at present.
        context: in which forward passes run (autocast).
        lr: the present learning rate.
        scale: the present one of a loss scaler; 1 without.
        further: gives the next of the further batches that a method draws, by its number.
    """

    reduce: Reduce
    world: int
    rank: int
    report: Callable[[str], None]
    frozen: Callable[[], Sequence[nn.Parameter]]
    context: Callable[[], AbstractContextManager[object]]
    lr: Callable[[], float]
    scale: Callable[[], float]
    further: Callable[[int], Batch]


class Step(NamedTuple):
    """What the log wants to know of a step.

    Attributes:
        losses: of the global batch.
        weights: of the tasks that took part, by position.
        penalties: by name.
    """

    losses: Losses
    weights: dict[int, float]
    penalties: dict[str, Tensor]


class NotFinite(TrainingError):
    """Losses that are no finite numbers.

    Args:
        tasks: whose.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(f"the loss of task {', '.join(tasks)} is not a finite number")
        self.tasks = list(tasks)


class Training:
    """Losses, weights and gradients of a network's training steps.

    Args:
        model: the network.
        tasks: by name.
        weighting: how much each counts.
        penalties: added behind it.
        options: how gradients of tasks are taken.
        surroundings: what is around.

    Attributes:
        engine: takes gradients of tasks; None where nobody asks for them. Its state belongs into checkpoints.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Mapping[str, Task],
        weighting: Weighting,
        penalties: Sequence[Penalty],
        options: EngineOptions,
        surroundings: Surroundings,
    ) -> None:
        self.model, self.tasks, self.weighting, self.around = model, tasks, weighting, surroundings
        self.importance = {name: float(task.weight) for name, task in tasks.items()}
        self._penalties = penalties
        self._revisit: Revisit | None = None
        self._alone: dict[tuple[bool, ...], bool | None] = {}
        self._step: Step | None = None
        self.engine: GradientEngine | None = None
        if weighting.from_gradients is not None or weighting.extra_batches or options.watch_every:
            around = surroundings
            self.engine = GradientEngine(weighting, model, options, around.reduce, around.world, around.rank, around.report)

    @property
    def weighs_gradients(self) -> bool:
        """Whether the step direction comes from the engine."""
        return self.engine is not None and self.weighting.from_gradients is not None

    def masked_losses(self, predictions: Mapping[str, Tensor], batch: Batch) -> dict[str, MaskedLoss]:
        """Each task's loss terms."""
        return {name: masked_loss(task, predictions[name], batch) for name, task in self.tasks.items()}

    def losses(self, predictions: Mapping[str, Tensor], batch: Batch) -> Losses:
        """Each task's mean over the labelled elements of the global batch."""
        masked = self.masked_losses(predictions, batch)
        return normalize(masked, batch.labelled, self.importance, self.around.world, self.around.reduce)

    @property
    def step(self) -> Step:
        """The present one."""
        assert self._step is not None, "objective comes first"
        return self._step

    def _rows(self, batch: Batch) -> dict[str, Tensor]:
        return batch.needed(self.model.read_by(batch.inputs))

    def _predict(self, batch: Batch) -> dict[str, Tensor]:
        with self.around.context():
            return self.model(batch.inputs, batch.padding, self._rows(batch))  # type: ignore[no-any-return]

    def _look(self, batch: Batch) -> Losses:
        predictions = self._predict(batch)
        with self.around.context():
            return self.losses(predictions, batch)

    def _blocks(self, predictions: Mapping[str, Tensor], batch: Batch, blocks: int) -> list[dict[str, MaskedLoss]]:
        place = block_of_rows(len(batch), blocks, self.around.world, self.around.rank).to(batch.sizes.device)
        found = []
        for block in range(blocks):
            labelled = {name: rows & (place == block) for name, rows in batch.labelled.items()}
            found.append(self.masked_losses(predictions, replace(batch, labelled=labelled)))
        return found

    def _agree(self, mine: bool) -> bool:
        """Whether all processes say yes."""
        if self.around.world == 1:
            return mine
        told = self.around.reduce(torch.tensor(float(mine), device=next(self.model.parameters()).device))
        return int(told) == self.around.world

    def _modes(self) -> tuple[bool, ...]:
        """Which parts of the network train: batch norm and dropout depend on it."""
        return tuple(module.training for module in self.model.modules())

    def prepare(self, batch: Batch, steps: bool = True) -> None:
        """What a method wants to see before a step.

        Args:
            batch: of the step.
            steps: whether the optimizer's step comes after this batch, and not after a later one of several that add up.
        """
        self._revisit = self._step = None
        if not steps:
            return
        if self.engine is not None and self.weighting.extra_batches:
            batches = [batch, *(self.around.further(number) for number in range(self.weighting.extra_batches))]
            frozen, lr, scale = self.around.frozen(), self.around.lr(), self.around.scale()
            self.weighting.explore(BatchProbe(batches, self._look, self.engine, self.model, frozen, lr, scale))
        share = self.weighting.revisit()
        if share:
            alone = self._alone.get(self._modes())
            self._revisit = Revisit(batch, share, self._predict, self.losses, self.model, self._agree, alone)

    def objective(self, batch: Batch) -> Tensor:
        """The scalar to run backward from.

        Raises:
            NotFinite: a loss that is no number, of any task, or of all where tasks' gradients are taken one by one.
        """
        engine = self.engine if self.weighs_gradients else None
        if engine is not None and engine.cuts:
            features = self.model.features(batch.inputs, batch.padding)
            predictions = self.model.predict(engine.cut(features), batch.inputs)
        else:
            predictions = self.model(batch.inputs, batch.padding, self._rows(batch))
        losses = self.losses(predictions, batch)
        if engine is not None and engine.wants_blocks(losses):
            losses = in_blocks(losses, self._blocks(predictions, batch, engine.blocks))
        bad = losses.not_finite()
        if bad and (engine is None or len(bad) == len(losses.present)):
            raise NotFinite(bad)
        if self._revisit is not None:
            self._revisit.before(predictions, losses)
            self._alone[self._modes()] = self._revisit.alone
        penalties = penalties_of(self._penalties, self.model)
        if engine is not None:
            self._step = Step(losses, {}, penalties)
            return engine.hold(losses, list(penalties.values()))
        objective, weights = weigh(losses, self.weighting.from_losses)
        self._step = Step(losses, dict(zip(losses.present.tolist(), weights, strict=True)), penalties)
        return sum(penalties.values(), objective)

    def backward(self, loss: Tensor, scaled: bool) -> Step:
        """Run backward.

        Args:
            loss: what became of the objective.
            scaled: whether a loss scaler looks for numbers that are not finite.
        """
        step = self.step
        if self.engine is None:
            loss.backward()  # type: ignore[no-untyped-call]
        elif not self.weighs_gradients:
            self.engine.observe(step.losses, self.around.frozen(), self.around.scale())
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            step = step._replace(weights=self.engine.backward(loss, self.around.frozen(), scaled))
        return step

    def finish(self) -> None:
        """After the batch, and the optimizer's step if it came."""
        if self._revisit is not None:
            before, after, places = self._revisit.after()
            if len(places):
                self.weighting.revisited(before, after, places)
            self._revisit = None
