"""The gradient engine: per-task gradients, their reduction over processes, the Gramian, the step direction. Pure torch."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch._functorch.config as functorch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mtl_lightning.checks import at_least
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features
from mtl_lightning.gradients.balance import Balance
from mtl_lightning.gradients.cut import Cut
from mtl_lightning.gradients.held import Gradients, Held, gradient_of, local, write
from mtl_lightning.gradients.rows import Rows, combine, flat, gramian_of, spread
from mtl_lightning.gradients.sharing import Sharing
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.objective import Losses, Reduce
from mtl_lightning.still import still
from mtl_lightning.unspoilt import agreed, all_finite
from mtl_lightning.weighting import GradientWeighting, Weighting

SMALL = 1e-3
"""A gradient that was multiplied by less than this share of the largest weight is not divided by it again but taken anew."""


@dataclass
class EngineOptions:
    """How gradients of tasks are taken.

    Attributes:
        gradients: ``parameters`` is exact, over the shared parameters, one backward pass of the trunk for each task;
            ``features`` takes them where heads read the trunk, with a single backward pass of the trunk.
        update_every: steps between two looks at the gradients; between them the last weights hold.
        heads: what parameters of one task alone are trained with, the task's loss or that times its weight; null is the
            method's own way.
        watch_every: a method that needs no gradients has them measured every so many steps, for the log; 0 is never.
    """

    gradients: Literal["parameters", "features"] = "parameters"
    update_every: int = 1
    heads: Literal["weighted", "unweighted"] | None = None
    watch_every: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        at_least("model.engine.update_every", self.update_every, 1)
        at_least("model.engine.watch_every", self.watch_every, 0)


class GradientEngine(nn.Module):
    """Writes the step direction of a weighting method into ``.grad``.

    No hook of DistributedDataParallel fires: the engine reduces everything itself, in every micro-batch.

    Args:
        weighting: with a part from gradients, and perhaps one from losses.
        model: the network.
        options: how.
        reduce: sums a tensor over processes.
        world: their number.
        rank: which of them this is.
        report: takes a sentence for the user.

    Raises:
        ConfigError: a method, an architecture and options that do not go together.
    """

    def __init__(
        self,
        weighting: Weighting,
        model: MultiTaskModel,
        options: EngineOptions,
        reduce: Reduce,
        world: int,
        rank: int,
        report: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.options = options
        self.balance = Balance(list(model.heads), reduce, world, rank == 0)
        self._parts, self._model = [weighting], [model]
        self._reduce, self._world, self._rank, self._report = reduce, world, rank, report
        self._frozen: frozenset[nn.Parameter] = frozenset()
        self._whole = self._sharing = Sharing(model)
        self._revision = model.architecture.revision
        first = next(model.parameters())
        self._in_parts, self._device = isinstance(first, DTensor), first.device
        self._rows = Rows()
        self._held: Held | None = None
        self._cut: Cut | None = None
        # A compiled encoder would otherwise give its buffers away in its first backward pass, and refuse the second.
        functorch.donated_buffer = False
        if self.method is not None:
            check(self.method, model, options)
            if self.method.needs_rows:
                self.method.allocate(self._whole.size, self._whole.dtype)

    @property
    def method(self) -> GradientWeighting | None:
        """The part that weighs gradients; None with a single task, where there is nothing to weigh."""
        return self._parts[0].from_gradients if len(self._model[0].heads) > 1 else None

    @property
    def cuts(self) -> bool:
        """Whether heads must read what :meth:`cut` gives."""
        return self.method is not None and self.options.gradients == "features"

    @property
    def blocks(self) -> int:
        """Into how many blocks of rows the batch is cut; 1 is not at all."""
        return 1 if self.method is None else self.method.blocks

    def wants_blocks(self, losses: Losses) -> bool:
        """Whether the losses of each block of rows are needed in this step."""
        return self.blocks > 1 and not self.cuts and self.balance.due(losses.places, self.options.update_every)

    def sharing(self, frozen: Collection[nn.Parameter]) -> Sharing:
        """The parameters that learn, sorted; anew where other ones are frozen."""
        now, revision = frozenset(frozen), self._model[0].architecture.revision
        if (self._frozen, self._revision) != (now, revision):
            self._frozen, self._revision, self._sharing = now, revision, Sharing(self._model[0], now)
            if self.method is not None and not self._sharing.shared:
                self._report(
                    f"Nothing that tasks share learns now: {type(self.method).__name__} has no gradients to weigh, and "
                    "every task counts with its loss times 1, as under Equal"
                )
        return self._sharing

    def cut(self, features: Mapping[str, list[Features]]) -> Mapping[str, list[Features]]:
        """What heads read instead of the features, where gradients are taken at them."""
        self._cut = Cut(features)
        return self._cut.features

    def hold(self, losses: Losses, penalties: Sequence[Tensor]) -> Tensor:
        """Take a step's losses, and give the scalar that the trainer scales and sends back to :meth:`backward`."""
        present = losses.places
        part, factors, learnt = self._parts[0].from_losses, [1.0] * len(present), None
        if part is not None and present:
            places = torch.tensor(present, device=losses.values.device)
            weights = part(losses.values[places], places)
            factors = weights.tolist()
            terms = [(weights * losses.values[places]).sum()] if weights.requires_grad else []
            terms += [] if (penalty := part.penalty(places)) is None else [penalty]
            learnt = torch.stack(terms).sum() if terms else None
        self._held = Held(losses, present, factors, learnt, penalties)
        return self._held.raw

    def backward(self, loss: Tensor, frozen: Collection[nn.Parameter] = (), scaled: bool = False) -> dict[int, float]:
        """Add the step direction to ``.grad``.

        Args:
            loss: what became of the scalar that :meth:`hold` gave.
            frozen: parameters that do not learn at present.
            scaled: whether a loss scaler looks for numbers that are not finite, and skips the step by itself.

        Returns:
            The weights by the positions of the tasks that took part.
        """
        held, self._held = self._held, None
        cut, self._cut = self._cut, None
        assert held is not None, "hold comes before backward"
        scale, share = torch.autograd.grad(loss, held.raw)[0].detach(), self.sharing(frozen)
        weights = torch.zeros(0)
        with torch.autocast(loss.device.type, enabled=False), still(self._model[0]):
            self._learn(held, share, scale)
            if held.present:
                weights = self._step(held, cut, share, scale, scaled)
        self.balance.calls += 1
        products = zip(held.present, weights.tolist(), held.factors, strict=False)
        return {task: weight * factor for task, weight, factor in products}

    def observe(self, losses: Losses, frozen: Collection[nn.Parameter], scale: float) -> None:
        """Measure the gradients of a method that does not need them, where one is due; the graph stays.

        Args:
            losses: of the step.
            frozen: parameters that do not learn at present.
            scale: of the loss scaler.
        """
        every = self.options.watch_every
        if every and int(self.balance.calls) % every == 0 and len(losses.places) > 1:
            with still(self._model[0]):
                jacobian, present = self.jacobian(losses, frozen, scale, keep=True)
            gramian = gramian_of(jacobian).cpu()
            if bool(gramian.isfinite().all()):
                self.balance.meter.add(gramian, present.tolist())
        self.balance.calls += 1

    def jacobian(
        self, losses: Losses, frozen: Collection[nn.Parameter], scale: float, keep: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The present tasks' gradients over the shared parameters, averaged over processes: [P, N], and int64 [P].

        Args:
            losses: of a batch.
            frozen: parameters that do not learn at present.
            scale: of the losses in the backward passes, against underflow in half precision; taken out again.
            keep: whether the graph is needed again.
        """
        share, held = self.sharing(frozen), Held(losses, losses.places)
        rows = losses.values.new_zeros(len(held.present), share.size, dtype=share.dtype)
        if not share.shared:
            return rows, torch.tensor(losses.places, dtype=torch.long)
        one = losses.values.new_tensor(scale)
        with torch.autocast(rows.device.type, enabled=False):
            for row, name in enumerate(held.names):
                again = keep or row < len(held.names) - 1
                flat(held.gradient([row], share.used_by(name), one, again), share.shared, rows[row])
        return self._mean(rows).div_(scale), torch.tensor(losses.places, dtype=torch.long)

    def weighted_gradient(
        self, losses: Losses, weights: Tensor, parameters: Sequence[nn.Parameter], scale: float
    ) -> list[Tensor]:
        """The gradient of a weighted sum of losses, averaged over processes; 0 where there is none.

        Args:
            losses: of a batch.
            weights: [T], of all tasks.
            parameters: by these.
            scale: as in :meth:`jacobian`.
        """
        held = Held(losses, losses.places)
        one, chosen = losses.values.new_tensor(scale), weights.detach().double().cpu()[held.present]
        found: Gradients = {}
        if held.present:
            with torch.autocast(one.device.type, enabled=False):
                found = self._reduced(held.gradient(range(len(held.present)), parameters, one, False, chosen))
        return [zeros_if_none(found.get(parameter), parameter).div(scale) for parameter in parameters]

    def _step(self, held: Held, cut: Cut | None, share: Sharing, scale: Tensor, scaled: bool) -> Tensor:
        """Write the directions of trunk and heads, and give the weights."""
        method = self.method
        if method is None or not share.shared:
            return self._weighted(held, share, scale, scaled, torch.ones(len(held.present), dtype=torch.float64), "weighted")
        heads = self.options.heads or method.heads
        if cut is not None and cut.sources:
            return self._at_features(method, held, cut, share, scale, scaled, heads)
        if self.balance.due(held.present, self.options.update_every):
            return self._over_parameters(method, held, share, scale, scaled, heads)
        return self._weighted(held, share, scale, scaled, self.balance.last(held.present), heads)

    def _over_parameters(
        self, method: GradientWeighting, held: Held, share: Sharing, scale: Tensor, scaled: bool, mode: str
    ) -> Tensor:
        """A backward pass for each task, the Gramian of what they give, and their weighted sum."""
        last = method.over == "last" and bool(share.last)
        # Rows that a method remembers keep their places: what is frozen has zeros there.
        over = share.last if last else self._whole.shared if method.needs_rows else share.shared
        rows = self._rows.empty(len(held.present), sum(p.numel() for p in over), share.dtype, over[0].device)
        kernels = self._block_gramians(held, over, scale) if self.blocks > 1 else None
        heads: list[Gradients] = []
        for row, name in enumerate(held.names):
            used, own = share.used_by(name, last=last), share.own[name]
            found = held.gradient([row], used + own, scale, last or row < len(held.names) - 1)
            flat({parameter: found[parameter] for parameter in used}, over, rows[row])
            # What is no number in the task's own parameters counts as one in its row: all processes see that.
            rows[row, 0] += spoilt(found[parameter] for parameter in own)
            heads.append({parameter: found[parameter] for parameter in own})
            del found
        rows = self._mean(rows)
        gramian = gramian_of(rows)
        good = self.balance.finite(gramian, held.present, scaled)
        if not good:
            return self._give_up(share, held, scaled)
        if len(good) < len(held.present):
            held.only(good)
            rows, gramian, heads = rows[good], gramian[good][:, good], [heads[row] for row in good]
        if method.needs_rows:
            rows = method.rows(rows.div_(scale), held.values, torch.tensor(held.present))
            gramian = gramian_of(rows)
        else:
            gramian = gramian / scale.double() ** 2
        weights = self.balance.solve(method, gramian, held.values, held.present, None if kernels is None else kernels[good])
        users = frozenset(held.names)
        if last:
            write(self._reduced(held.gradient(range(len(held.present)), share.used_by(*users), scale, False, weights)))
        else:
            direction = combine(weights, rows)
            parts = spread(direction * scale if method.needs_rows else direction, over)
            used_now = set(share.used_by(*users))
            write({parameter: part for parameter, part in zip(over, parts, strict=True) if parameter in used_now})
        self._write_heads(heads, weights, mode)
        return weights

    def _at_features(
        self, method: GradientWeighting, held: Held, cut: Cut, share: Sharing, scale: Tensor, scaled: bool, mode: str
    ) -> Tensor:
        """A backward pass of each head, the Gramian at the features, and one backward pass of the trunk."""
        heads: list[Gradients] = []
        tasks = len(held.present)
        good = list(range(tasks))
        for row, name in enumerate(held.names):
            found = held.gradient([row], [*cut.leaves[name], *share.own[name]], scale, False)
            cut.take(row, [found.pop(leaf) for leaf in cut.leaves[name]])
            heads.append(found)
        if self.balance.due(held.present, self.options.update_every):
            gramian = self._total(cut.gramian(tasks) + torch.diag_embed(self._spoilt(heads))) / self._world**2
            good = self.balance.finite(gramian, held.present, scaled)
            if not good:
                return self._give_up(share, held, scaled)
            if len(good) < len(held.present):
                held.only(good)
                gramian, heads = gramian[good][:, good], [heads[row] for row in good]
            gramian = gramian / scale.double() ** 2
            kernels = None
            if self.blocks > 1:
                sizes = cut.block_norms(tasks, self.blocks, self._world, self._rank)
                kernels = torch.diag_embed(self._total(sizes)[good] * (self.blocks / self._world / scale) ** 2).double().cpu()
            weights = self.balance.solve(method, gramian, held.values, held.present, kernels, summed=True)
        else:
            weights = self.balance.last(held.present)
            bad = [] if scaled else self._total(self._spoilt(heads)).isnan().nonzero()[:, 0].tolist()
            if bad:
                return self._give_up(share, held, scaled, [held.present[row] for row in bad])
        trunk = self._reduced(cut.trunk(dict(zip(good, weights.tolist(), strict=True)), share.shared))
        if not scaled and not self._finite(trunk):
            return self._give_up(share, held, scaled, held.present)
        write(trunk)
        self._write_heads(heads, weights, mode)
        return weights

    def _block_gramians(self, held: Held, over: Sequence[nn.Parameter], scale: Tensor) -> Tensor:
        """Each task's Gramian of the gradients of its blocks, times the number of blocks: float64 [P, n, n] on the CPU."""
        found = []
        for row, scalars in enumerate(held.blocks):
            rows = over[0].new_empty(len(scalars), sum(p.numel() for p in over), dtype=self._sharing.dtype)
            for block, scalar in enumerate(scalars):
                factor = scale * (held.factors[row] * len(scalars))
                flat(gradient_of([scalar], over, [factor], True), over, rows[block])
            found.append(gramian_of(self._mean(rows)) / scale.double() ** 2)
        return torch.stack(found).cpu()

    def _weighted(self, held: Held, share: Sharing, scale: Tensor, scaled: bool, weights: Tensor, mode: str) -> Tensor:
        """One backward pass of the weighted sum; heads that learn unweighted have their weight divided out again."""
        numbers, top = weights.tolist(), float(weights.abs().max())
        apart = {row for row, weight in enumerate(numbers) if mode == "unweighted" and abs(weight) <= SMALL * top}
        found: Gradients = {}
        for row in apart:
            found |= held.gradient([row], share.own[held.names[row]], scale, True)
        rest = [row for row in range(len(numbers)) if row not in apart]
        joint = share.used_by(*held.names) + [parameter for row in rest for parameter in share.own[held.names[row]]]
        found |= held.gradient(range(len(numbers)), joint, scale, False, weights)
        if mode == "unweighted":
            for row in rest:
                for parameter in share.own[held.names[row]]:
                    gradient = found[parameter]
                    found[parameter] = None if gradient is None else gradient / numbers[row]
        found = self._reduced(found)
        if not scaled and not self._finite(found):
            own = [row for row, name in enumerate(held.names) if not self._finite({p: found[p] for p in share.own[name]})]
            return self._give_up(share, held, scaled, [held.present[row] for row in own] or held.present)
        write(found)
        return weights

    def _write_heads(self, heads: Sequence[Gradients], weights: Tensor, mode: str) -> None:
        found: Gradients = {}
        for gradients, weight in zip(heads, weights.tolist(), strict=True):
            if mode == "weighted":
                gradients = {key: None if value is None else value * weight for key, value in gradients.items()}
            found |= gradients
        write(self._reduced(found))

    def _learn(self, held: Held, share: Sharing, scale: Tensor) -> None:
        """What the part from losses learns, equal on all processes, and the penalties."""
        weighting = self._parts[0]
        if held.learnt is not None:
            owners = weighting.owners()
            mine = [p for p in weighting.parameters() if p.requires_grad and owners.get(p, -1) in (-1, *held.present)]
            write(gradient_of([held.learnt], mine, [scale], False))
        penalties, parameters = [penalty for penalty in held.penalties if penalty.requires_grad], share.all_of(held.names)
        if penalties and parameters:
            # A penalty may be of the activations: their graph is needed again.
            write(self._reduced(gradient_of(penalties, parameters, [scale] * len(penalties), True)))

    @staticmethod
    def _spoilt(heads: Sequence[Gradients]) -> Tensor:
        """0 for each task whose own parameters have finite gradients on this process, else NaN: float64 [P]."""
        return torch.stack([torch.as_tensor(spoilt(gradients.values()), dtype=torch.float64) for gradients in heads])

    def _give_up(self, share: Sharing, held: Held, scaled: bool, tasks: Sequence[int] = ()) -> Tensor:
        """No direction; a loss scaler is told by a gradient that is no number."""
        self.balance.skip(() if scaled else tasks)
        held.only([])
        # The gradients of the next step are looked at, to see whose they are.
        self.balance.known.zero_()
        if scaled:
            write({share.shared[0]: torch.full_like(share.shared[0], torch.nan)})
        return torch.zeros(0)

    def _finite(self, reduced: Gradients) -> bool:
        """Whether all numbers are finite, on all processes."""
        good = all_finite([local(gradient) for gradient in taken(reduced)])
        return agreed(good, self._reduce, self._world, self._device) if self._in_parts else good

    def _total(self, tensor: Tensor) -> Tensor:
        return self._reduce(tensor) if self._world > 1 else tensor

    def _mean(self, tensor: Tensor) -> Tensor:
        return self._reduce(tensor).div_(self._world) if self._world > 1 else tensor

    def _reduced(self, gradients: Gradients) -> Gradients:
        """The mean over processes, in one message; gradients in parts are means already."""
        if self._world == 1 or not gradients or self._in_parts:
            return gradients
        parameters = list(gradients)
        message = parameters[0].new_empty(sum(parameter.numel() for parameter in parameters), dtype=self._sharing.dtype)
        flat(gradients, parameters, message)
        return dict(zip(parameters, spread(self._mean(message), parameters), strict=True))


def taken(gradients: Gradients) -> list[Tensor]:
    """Those that there are."""
    return [gradient for gradient in gradients.values() if gradient is not None]


def spoilt(gradients: Iterable[Tensor | None]) -> Tensor | float:
    """0 if all of them are finite, else NaN; without a look at the device where they are."""
    found = [gradient for gradient in gradients if gradient is not None]
    return nn.utils.get_total_norm([local(gradient) for gradient in found]) * 0 if found else 0.0


def zeros_if_none(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """A gradient that a parameter does not have is 0."""
    return torch.zeros_like(parameter) if gradient is None else gradient


def check(method: GradientWeighting, model: MultiTaskModel, options: EngineOptions) -> None:
    """Raise :class:`ConfigError` where method, architecture and options do not go together."""
    name, architecture = type(method).__name__, type(model.architecture).__name__
    if not Sharing(model).shared:
        raise ConfigError(
            f"model.weighting {name} balances gradients of shared parameters, and architecture {architecture} shares none "
            "as it is configured; take a weighting from losses, or another architecture"
        )
    if options.gradients == "features" and method.needs_rows:
        raise ConfigError(
            f"model.engine.gradients is features, and {name} changes the gradients of the parameters; set it to parameters"
        )
    if options.update_every > 1 and method.needs_rows:
        raise ConfigError(
            f"model.engine.update_every is {options.update_every}, and {name} changes the gradients of every step; set it to 1"
        )
    if options.gradients == "features" and not model.architecture.common:
        raise ConfigError(
            f"model.engine.gradients is features, and architecture {architecture} gives each task features of its own; set it to "
            "parameters, or take an architecture whose tasks all read the same features (HardSharing)"
        )
