"""From the Gramian of a step's gradients to weights that are the same on all processes, and what is kept of them. Pure torch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.errors import TrainingError
from mtl_lightning.gradients.conflicts import ConflictMeter
from mtl_lightning.objective import Reduce
from mtl_lightning.weighting import GradientWeighting

Report = Callable[[str], None]
PATIENCE = 30
"""Steps in which a loss scaler may look for its scale, before a task whose gradient still overflows is left out."""


class Balance(nn.Module):
    """The weights between two looks at the gradients, the tasks and steps that had to be left out, and the conflicts seen.

    Args:
        tasks: names.
        reduce: sums a tensor over processes.
        world: their number.
        main: whether this is the process whose solution all take.
        report: takes a sentence for the user.
    """

    calls: Tensor
    weights: Tensor
    known: Tensor
    skipped: Tensor
    left_out: Tensor
    overflows: Tensor

    def __init__(self, tasks: Sequence[str], reduce: Reduce, world: int, main: bool, report: Report) -> None:
        super().__init__()
        self.tasks, size = list(tasks), len(tasks)
        self.meter = ConflictMeter(tasks)
        self._reduce, self._world, self._main, self._report = reduce, world, main, report
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("weights", torch.zeros(size))
        self.register_buffer("known", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.long))
        self.register_buffer("left_out", torch.zeros(size, dtype=torch.long))
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
        if waits or not bool(gramian[good][:, good].isfinite().all()):
            return []
        self.leave_out(bad, "gradient")
        return good

    def leave_out(self, tasks: Sequence[int], what: str) -> None:
        """Count and tell that a task takes no part in a step."""
        for task in tasks:
            self.left_out[task] += 1
            count = int(self.left_out[task])
            if count & (count - 1) == 0:
                self._report(
                    f"The {what} of task '{self.tasks[task]}' is not a finite number: the task was left out of this step, the "
                    f"others were not ({count} step{'s' if count > 1 else ''} so far). Look at its labels, lower the learning "
                    "rate, or clip gradients with trainer.gradient_clip_val"
                )

    def skip(self, scaled: bool) -> None:
        """Count and tell that a step is not taken; a loss scaler that looks for its scale is no news."""
        self.skipped += 1
        count = int(self.skipped)
        if count & (count - 1) == 0 and not scaled:
            self._report(f"The gradients of no task are finite numbers: the step was skipped ({count} so far)")

    def record(self) -> dict[str, float]:
        """For the log of a step."""
        record = self.meter.step_record()
        if int(self.skipped):
            record["gradient/skipped"] = float(self.skipped)
        for task, count in enumerate(self.left_out.tolist()):
            if count:
                record[f"gradient/left_out/{self.tasks[task]}"] = float(count)
        return record
