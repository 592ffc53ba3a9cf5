"""A training step from the batch to ``.grad``, as any trainer may take it. Pure torch."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtl_lightning.bad_numbers import Fault, merged
from mtl_lightning.batch import Batch
from mtl_lightning.faults import gradient_faults, loss_faults, whose
from mtl_lightning.freeze import anchor
from mtl_lightning.gradients import EngineOptions, GradientEngine, local
from mtl_lightning.mixing import masked_loss
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.objective import Losses, Reduce, block_of_rows, in_blocks, normalize, weigh
from mtl_lightning.penalties import Penalty, penalties_of
from mtl_lightning.probe import BatchProbe, Revisit
from mtl_lightning.sharding import average
from mtl_lightning.tasks.base import MaskedLoss, Task
from mtl_lightning.unspoilt import Aside, Buffers, agreed, all_finite
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
        gather: what all processes have to say, one after the other.
        replicated: whether every process holds all parameters and gradients.
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
    gather: Callable[[list[Fault]], list[Fault]] = list
    replicated: bool = True


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
        self._batch: Batch | None = None
        self._buffers, self._aside = Buffers(model), Aside([])
        self._faults: list[Fault] = []
        self._lost, self._steps = False, True
        self._parameters: list[nn.Parameter] = []
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

    def losses(self, predictions: Mapping[str, Tensor], batch: Batch, faults: int = 0) -> Losses:
        """Each task's mean over the labelled elements of the global batch.

        Args:
            predictions: of the batch.
            batch: what to compare them with.
            faults: images and labels that were left out, on this process.
        """
        masked = self.masked_losses(predictions, batch)
        return normalize(masked, batch.labelled, self.importance, self.around.world, self.around.reduce, faults)

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
            losses = self.losses(predictions, batch)
        if bad := losses.not_finite():
            if batch is not self._batch:
                self._note(loss_faults(bad, predictions, batch))
            losses = losses.without(bad, self._nothing(bad))
        return losses

    def _nothing(self, tasks: Collection[str]) -> Tensor:
        """An exact 0 that depends on what these tasks alone use, so that no process waits for its gradients."""
        if not self.around.replicated:
            # FSDP waits for nobody, as long as all processes do without.
            return torch.zeros((), requires_grad=True)
        others = set(self.tasks) - set(tasks)
        owners = self.model.owners()
        zero = next(iter(owners)).new_zeros(())
        return anchor(zero, [parameter for parameter, users in owners.items() if not users & others])

    def _note(self, faults: Sequence[Fault]) -> None:
        # A batch may be looked at several times in a step.
        known = {(fault.key, fault.ids) for fault in self._faults}
        self._faults += [fault for fault in faults if (fault.key, fault.ids) not in known]

    def _blocks(self, predictions: Mapping[str, Tensor], batch: Batch, blocks: int) -> list[dict[str, MaskedLoss]]:
        place = block_of_rows(len(batch), blocks, self.around.world, self.around.rank).to(batch.sizes.device)
        found = []
        for block in range(blocks):
            labelled = {name: rows & (place == block) for name, rows in batch.labelled.items()}
            found.append(self.masked_losses(predictions, replace(batch, labelled=labelled)))
        return found

    def _agree(self, mine: bool) -> bool:
        """Whether all processes say yes."""
        return agreed(mine, self.around.reduce, self.around.world, next(self.model.parameters()).device)

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
        self._batch, self._faults, self._lost, self._steps = batch, list(batch.bad), False, steps
        self._buffers.keep()
        if not steps:
            return
        if self.engine is not None and self.weighting.extra_batches:
            batches = [batch, *(self.around.further(number) for number in range(self.weighting.extra_batches))]
            self._faults += [fault for further in batches[1:] for fault in further.bad]
            frozen, lr, scale = self.around.frozen(), self.around.lr(), self.around.scale()
            self.weighting.explore(BatchProbe(batches, self._look, self.engine, self.model, frozen, lr, scale))
        share = self.weighting.revisit()
        if share:
            alone = self._alone.get(self._modes())
            self._revisit = Revisit(batch, share, self._predict, self.losses, self.model, self._agree, alone)

    def objective(self, batch: Batch) -> Tensor:
        """The scalar to run backward from; tasks whose loss is no finite number are no part of it."""
        engine = self.engine if self.weighs_gradients else None
        if engine is not None and engine.cuts:
            features = self.model.features(batch.inputs, batch.padding)
            predictions = self.model.predict(engine.cut(features), batch.inputs)
        else:
            predictions = self.model(batch.inputs, batch.padding, self._rows(batch))
        losses = self.losses(predictions, batch, sum(fault.what in ("image", "target") for fault in self._faults))
        if bad := losses.not_finite():
            self._note(loss_faults(bad, predictions, batch))
            losses = losses.without(bad, self._nothing(bad))
            self._lost = not losses.places
        if engine is not None and engine.wants_blocks(losses):
            losses = in_blocks(losses, self._blocks(predictions, batch, engine.blocks))
        if self._revisit is not None:
            self._revisit.before(predictions, losses)
            self._alone[self._modes()] = self._revisit.alone
        penalties = {} if self._lost else penalties_of(self._penalties, self.model)
        if engine is not None:
            self._step = Step(losses, {}, penalties)
            return engine.hold(losses, list(penalties.values()))
        objective, weights = weigh(losses, self.weighting.from_losses)
        self._step = Step(losses, dict(zip(losses.places, weights, strict=True)), penalties)
        return sum(penalties.values(), objective)

    def backward(self, loss: Tensor, scaled: bool) -> Step:
        """Run backward.

        Args:
            loss: what became of the objective.
            scaled: whether a loss scaler looks for numbers that are not finite.
        """
        step = self.step
        self._parameters = [*self.model.parameters(), *self.weighting.parameters()]
        # Where several processes share the sum, DistributedDataParallel wants to find it in place.
        shared = self.around.world > 1 and not self.weighs_gradients and self.around.replicated
        self._aside = Aside(self._parameters, self._mean if shared and not self._apart else None)
        if self.engine is None:
            loss.backward()  # type: ignore[no-untyped-call]
        elif not self.weighs_gradients:
            self.engine.observe(step.losses, self.around.frozen(), self.around.scale())
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            step = step._replace(weights=self.engine.backward(loss, self.around.frozen(), scaled))
        if not self.around.replicated:
            average(list(self.weighting.parameters()), self.around.reduce, self.around.world)
        return step

    def settle(self, scaled: bool) -> list[Fault]:
        """Once :meth:`backward` is over and nothing that rests has a gradient: keep what is finite.

        Args:
            scaled: whether a loss scaler looks at the gradients by itself.

        Returns:
            What was left out in this step, on all processes.
        """
        engine = self.engine if self.weighs_gradients else None
        failed, given_up = ([], False) if engine is None else engine.balance.take()
        if failed:
            lost = self._cost if given_up else "the task was left out of the step"
            self._note(gradient_faults([list(self.tasks)[task] for task in failed], self._own, lost))
        self._lost |= given_up and not scaled
        hollow = bool(self._faults) and not any(bool(tensor.any()) for tensor in self._own.inputs.values())
        gradients = [] if scaled or self._lost else [p.grad for p in self._parameters if p.grad is not None]
        if not self._finite([*gradients, *self._buffers.numbers()]):
            if not self._lost and not self._finite(gradients):
                if not (self._apart and all_finite(gradients)):
                    self._note(gradient_faults(self._guilty(), self._own, self._cost))
                self._lost = True
            self._buffers.put_back(every=self._lost)
        elif self._lost or hollow:
            self._buffers.put_back(every=True)
        self._keep_gradients(scaled)
        if not (self._faults or self._lost or self.step.losses.faults):
            return []
        return merged(self.around.gather(self._faults))

    @property
    def _apart(self) -> bool:
        """Whether gradients are each process's own: those of losses are averaged once a step, with the last micro-batch."""
        return self.around.world > 1 and self.around.replicated and not self.weighs_gradients and not self._steps

    @property
    def _cost(self) -> str:
        """What a gradient that is no number takes away."""
        return (
            "the step was not taken" if self._steps and not self._aside.earlier else "this micro-batch was left out of the step"
        )

    def _keep_gradients(self, scaled: bool) -> None:
        if not self._lost:
            self._aside.add()
            return
        self._revisit = None
        self._aside.only(self._parameters)
        if scaled and all(parameter.grad is None for parameter in self._parameters):
            # A scaler refuses a step without gradients, and skips one with such.
            self._parameters[0].grad = torch.full_like(self._parameters[0], torch.nan)

    def _finite(self, tensors: Sequence[Tensor]) -> bool:
        good = all_finite([local(tensor) for tensor in tensors])
        return good if self.around.replicated and not self._apart else self._agree(good)

    def _mean(self, gradient: Tensor) -> Tensor:
        return gradient.copy_(self.around.reduce(gradient.contiguous()) / self.around.world)

    def _guilty(self) -> list[str]:
        names = [name for task, name in enumerate(self.tasks) if task in self.step.losses.places]
        # Of gradients in parts all processes must be asked; whole ones may be looked at by one process alone.
        return whose(self.model, self.weighting, names, all_finite if self.around.replicated else self._finite)

    @property
    def _own(self) -> Batch:
        assert self._batch is not None, "prepare comes first"
        return self._batch

    def overflowed(self) -> list[Fault]:
        """Of a step that a loss scaler skipped, whose gradients were not finite, on all processes."""
        self._faults = []
        lost = "no loss scale is small enough: the step was not taken"
        self._note(gradient_faults(self._guilty(), self._own, lost))
        return merged(self.around.gather(self._faults))

    def finish(self) -> None:
        """After the batch, and the optimizer's step if it came."""
        if self._revisit is not None:
            before, after, places = self._revisit.after()
            if len(places):
                self.weighting.revisited(before, after, places)
            self._revisit = None
