"""From the Gramian of a step's gradients to weights that are the same on all processes, and what is kept of them. Pure torch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.bad_numbers import PATIENCE
from mtl_lightning.errors import TrainingError
from mtl_lightning.gradients.conflicts import ConflictMeter
from mtl_lightning.objective import Reduce
from mtl_lightning.weighting import GradientWeighting


class Balance(nn.Module):
    """The weights between two looks at the gradients, the tasks and steps that had to be left out, and the conflicts seen.

    Args:
        tasks: names.
        reduce: sums a tensor over processes.
        world: their number.
        main: whether this is the process whose solution all take.
    """

    calls: Tensor
    weights: Tensor
    known: Tensor
    skipped: Tensor
    overflows: Tensor

    def __init__(self, tasks: Sequence[str], reduce: Reduce, world: int, main: bool) -> None:
        super().__init__()
        self.tasks, size = list(tasks), len(tasks)
        self.meter = ConflictMeter(tasks)
        self._reduce, self._world, self._main = reduce, world, main
        self._failed: list[int] = []
        self._given_up = False
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("weights", torch.zeros(size))
        self.register_buffer("known", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.long))
        self.register_buffer("overflows", torch.zeros(size, dtype=torch.long))

    def due(self, present: Sequence[int], every: int) -> bool:
        """Whether the gradients must be looked at: every so many calls, and where the weights are not those of these tasks."""
        return int(self.calls) % every == 0 or self.known.nonzero()[:, 0].tolist() != list(present)

    def last(self, present: Sequence[int]) -> Tensor:
        """The weights that hold: float64 [P] on the CPU."""
        return self.weights[list(present)].double().cpu()

    def solve(
        self,
        method: GradientWeighting,
        gramian: Tensor,
        values: Tensor,
        present: Sequence[int],
        blocks: Tensor | None = None,
        summed: bool = False,
    ) -> Tensor:
        """The method's weights, those of the main process on all.

        Args:
            method: the method.
            gramian: float64 [P, P], finite, over all processes and without any loss scale.
            values: float64 [P], the losses.
            present: positions of the tasks.
            blocks: float64 [P, n, n], Gramians of the blocks of the batch, for a method that asks for them.
            summed: both are sums over the processes, the same everywhere to the last bit; what each process has computed for
                itself, of the same gradients, may not be.

        Raises:
            TrainingError: weights that are no numbers.
        """
        gramian = gramian.cpu() if summed else self._same(gramian.cpu())
        self.meter.add(gramian, present)
        if blocks is not None:
            method.see_blocks(blocks if summed else self._same(blocks))
        weights = method(gramian, values, torch.tensor(list(present))).detach().double()
        if not bool(weights.isfinite().all()):
            raise TrainingError(
                f"model.weighting {type(method).__name__} gave the weights {weights.tolist()} for the tasks "
                f"{', '.join(self.tasks[task] for task in present)}, whose Gramian is {gramian.tolist()}; expected finite numbers"
            )
        weights = self._same(weights)
        self.known.zero_()
        self.known[list(present)] = True
        self.weights[list(present)] = weights.to(self.weights)
        return weights

    def _same(self, tensor: Tensor) -> Tensor:
        if self._world == 1:
            return tensor
        # One process adds what it has to the zeros of the others; through the device, because a GPU's backend takes nothing else.
        mine = tensor if self._main else torch.zeros_like(tensor)
        return self._reduce(mine.to(self.weights.device)).to(tensor)

    def finite(self, gramian: Tensor, present: Sequence[int], scaled: bool) -> list[int]:
        """Which rows of a Gramian are numbers; none where the step cannot be taken.

        Args:
            gramian: [P, P].
            present: positions of its tasks.
            scaled: whether a loss scaler deals with numbers that are not finite, and wants to see them.
        """
        flags = gramian.diagonal().isfinite().tolist()
        good = [row for row, finite in enumerate(flags) if finite]
        bad = [present[row] for row, finite in enumerate(flags) if not finite]
        self.overflows[[present[row] for row in good]] = 0
        self.overflows[bad] += 1
        # A scaler finds its scale in a few steps; what overflows for ever is not a matter of scale.
        waits = scaled and bool((self.overflows[bad] <= PATIENCE).any())
        whole = bool(gramian[good][:, good].isfinite().all())
        if waits or (scaled and not whole):
            return []
        self._failed += bad if whole else list(present)
        return good if whole else []

    def skip(self, tasks: Sequence[int] = ()) -> None:
        """Count that a step has no direction, and whose gradients are to blame where that is not known yet.

        Args:
            tasks: positions.
        """
        self.skipped += 1
        self._given_up = True
        self._failed += tasks

    def take(self) -> tuple[list[int], bool]:
        """The tasks whose gradients were not finite in this step, and whether it has no direction."""
        failed, given_up = sorted(set(self._failed)), self._given_up
        self._failed, self._given_up = [], False
        return failed, given_up

    def record(self) -> dict[str, float]:
        """For the log of a step."""
        record = self.meter.step_record()
        if int(self.skipped):
            record["gradient/skipped"] = float(self.skipped)
        return record
