"""What weighting methods look at beside a step's own losses: further batches before it, its own batch after it. Pure torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from mtl_lightning.batch import Batch
from mtl_lightning.errors import ConfigError
from mtl_lightning.gradients import Dice, GradientEngine, still
from mtl_lightning.objective import Losses

LossesOf = Callable[[Batch], Losses]


class BatchProbe:
    """The losses and gradients of some batches, with the same dropout every time and no trace in the network.

    Args:
        batches: the step's own and the further ones.
        losses_of: a forward pass with its losses over all processes.
        engine: takes gradients.
        model: the network.
        frozen: parameters that do not learn at present.
        lr: the present learning rate.
        scale: of losses in half precision.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        losses_of: LossesOf,
        engine: GradientEngine,
        model: nn.Module,
        frozen: Sequence[nn.Parameter],
        lr: float,
        scale: float,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad and all(p is not other for other in frozen)]
        self.lr, self._scale = lr, scale
        self._batches, self._losses_of, self._engine, self._model, self._frozen = batches, losses_of, engine, model, frozen
        self._dice = Dice(self.parameters[0].device)

    def losses(self, batch: int) -> tuple[Tensor, Tensor]:
        """The losses of a batch and the positions of its tasks: float64 [P], int64 [P], on the CPU."""
        with self._still(), torch.no_grad():
            found = self._look(batch)
        places = torch.tensor(found.places, dtype=torch.long)
        return torch.tensor(found.numbers, dtype=torch.float64)[places], places

    def gradient(self, batch: int, weights: Tensor) -> list[Tensor]:
        """The gradient of the weighted sum of a batch's losses for each of ``parameters``, averaged over processes."""
        with self._still():
            found = self._look(batch)
            return self._engine.weighted_gradient(found, weights, self.parameters, self._scale)

    def jacobian(self, batch: int) -> tuple[Tensor, Tensor]:
        """The tasks' gradients over the shared parameters, averaged over processes, and the positions: [P, N], int64 [P]."""
        with self._still():
            return self._engine.jacobian(self._look(batch), self._frozen, self._scale)

    def _look(self, batch: int) -> Losses:
        return self._losses_of(self._batches[batch])

    @contextmanager
    def _still(self) -> Iterator[None]:
        with still(self._model), self._dice.again():
            # Autocast keeps converted weights, and methods move the weights between two looks.
            torch.clear_autocast_cache()
            yield
            torch.clear_autocast_cache()


class Revisit:
    """The losses of a step's batch, or its first rows, before and after the optimizer's step.

    Of a part of the batch, the step's own predictions have other batch statistics and other dropout than a later look at it;
    only where both turn out to be the same are they taken for the look before the step.

    Args:
        batch: of the step.
        share: of its rows, in (0, 1].
        predict: a forward pass.
        losses_of: the losses of predictions for a batch, over all processes.
        model: the network.
        agree: whether all processes say so.
        alone: whether its rows are known not to depend on each other or on random numbers; None if it is not known.
    """

    def __init__(
        self,
        batch: Batch,
        share: float,
        predict: Callable[[Batch], Mapping[str, Tensor]],
        losses_of: Callable[[Mapping[str, Tensor], Batch], Losses],
        model: nn.Module,
        agree: Callable[[bool], bool],
        alone: bool | None,
    ) -> None:
        self.rows = max(1, round(share * len(batch)))
        self.whole, self.alone = self.rows == len(batch), alone
        self._batch = batch if self.whole else first_rows(batch, self.rows)
        self._predict, self._losses_of, self._model = predict, losses_of, model
        self._agree, self._drawn = agree, False
        self._dice = Dice(next(model.parameters()).device)
        self._first = None if self.whole or alone else self._look()
        self._before: Losses | None = None

    def before(self, predictions: Mapping[str, Tensor], losses: Losses) -> None:
        """The step's own predictions for the whole batch, and its losses."""
        if self.whole:
            self._before = losses
            return
        mine = {name: value[: self.rows].detach() for name, value in predictions.items()}
        if self.alone is None and self._first is not None:
            same = (torch.allclose(mine[name], value, rtol=1e-4, atol=1e-5) for name, value in self._first.items())
            self.alone = self._agree(not self._drawn and all(same))
        with torch.no_grad():
            chosen = mine if self.alone or self._first is None else self._first
            self._before = self._losses_of(chosen, self._batch)
        self._first = None

    def after(self) -> tuple[Tensor, Tensor, Tensor]:
        """Losses before and after the step, and the positions of their tasks; those that are no numbers are left out."""
        with torch.no_grad():
            first, second = self._before, self._losses_of(self._look(), self._batch)
        assert first is not None, "before comes before after"
        pairs = torch.tensor([first.numbers, second.numbers], dtype=torch.float64)
        finite = pairs.isfinite().all(0).tolist()
        places = torch.tensor([task for task in second.places if finite[task]], dtype=torch.long)
        return pairs[0, places], pairs[1, places], places

    def _look(self) -> Mapping[str, Tensor]:
        with torch.no_grad(), still(self._model), self._dice.again():
            found = self._predict(self._batch)
            self._drawn = not self._dice.unused()
            return found


def first_rows(batch: Batch, rows: int) -> Batch:
    """A batch of the first rows of another.

    Raises:
        ConfigError: the batch is mixed of pairs of rows.
    """
    if batch.partner:
        raise ConfigError(
            "model.weighting looks at a part of each batch (fraction), and data.init_args.mixing mixes rows with others of the "
            "whole batch; set model.weighting.init_args.fraction to 1, or leave mixing out"
        )

    def cut(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value[:rows] for name, value in values.items()}

    padding = None if batch.padding is None else batch.padding[:rows]
    return replace(
        batch,
        inputs=cut(batch.inputs),
        targets=cut(batch.targets),
        labelled=cut(batch.labelled),
        ids=batch.ids[:rows],
        sizes=batch.sizes[:rows],
        padding=padding,
        given=cut(batch.given),
        texts=batch.texts[:rows],
    )
