"""The weighting contract: from the tasks' losses to their weights."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class TaskInfo:
    """What a method may know of a task.

    Attributes:
        name: the task.
        weight: its fixed importance, already in the losses that the method sees.
        labelled: labelled rows of the training split.
        noise: the likelihood its loss belongs to.
    """

    name: str
    weight: float = 1.0
    labelled: int = 0
    noise: Literal["gaussian", "laplace", "softmax"] = "gaussian"


class Weighting(nn.Module):
    """A method that decides how much each task counts in a step.

    Methods see small detached tensors of the tasks present in the global batch, in the order of the task names and equal on
    all ranks. State lives in buffers and parameters, so that it is in every checkpoint.
    """

    lr: float | None = None
    """Learning rate of the method's own parameters; None takes the optimizer's. They never get weight decay."""

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Make the state that depends on the tasks; called once, before any step."""

    def owners(self) -> dict[nn.Parameter, int]:
        """Parameters that belong to one task alone, with its position: they rest while the task is absent."""
        return {}

    def epoch_end(self, losses: Tensor, seen: Tensor) -> None:
        """Called after each training epoch.

        Args:
            losses: [T] the epoch's mean losses.
            seen: bool [T], which tasks had a label in it.
        """


class LossWeighting(Weighting):
    """A method that needs the losses alone.

    The step's objective is the weighted sum of the losses plus :meth:`penalty`.
    """

    @abstractmethod
    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """The weights of a step.

        Args:
            losses: [P] detached losses of the present tasks, over the global batch, times their fixed importance.
            present: [P] their positions among all tasks.

        Returns:
            [P]; with gradient only to the method's own parameters.
        """

    def penalty(self, present: Tensor) -> Tensor | None:
        """A scalar added to the objective, for learnt weights."""
        return None
