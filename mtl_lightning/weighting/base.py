"""The weighting contract: from the tasks' losses, or from their gradients, to their weights."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class TaskInfo:
    """What a method may know of a task.

    Attributes:
        name: the task.
        weight: its fixed importance, already in the losses that the method sees.
        labelled: labelled rows of the training split.
        noise: the likelihood its loss belongs to.
        auxiliary: whether it only helps the others.
    """

    name: str
    weight: float = 1.0
    labelled: int = 0
    noise: Literal["gaussian", "laplace", "softmax"] = "gaussian"
    auxiliary: bool = False


class Probe(Protocol):
    """What a method may try out before a step, without a trace in the network: batch statistics and random numbers stay."""

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """All parameters of the network that learn; who changes them puts them back."""

    @property
    def lr(self) -> float:
        """The present learning rate of the first of them."""

    def losses(self, batch: int) -> tuple[Tensor, Tensor]:
        """The losses of a batch, over all processes, and the positions of the tasks present in it: float64 [P], int64 [P].

        Args:
            batch: 0 is the step's own, 1 and so on are the further ones.
        """

    def gradient(self, batch: int, weights: Tensor) -> list[Tensor]:
        """The gradient of the weighted sum of a batch's losses for each of :attr:`parameters`, averaged over processes.

        Args:
            batch: which.
            weights: [T], of all tasks.
        """

    def jacobian(self, batch: int) -> tuple[Tensor, Tensor]:
        """The tasks' gradients over the shared parameters, averaged over processes, and the positions: [P, N], int64 [P]."""


class Weighting(nn.Module):
    """A method that decides how much each task counts in a step.

    Methods see small detached tensors of the tasks present in the global batch, in the order of the task names and equal on
    all ranks. State lives in buffers and parameters, so that it is in every checkpoint; buffers may be on a GPU.
    """

    lr: float | None = None
    """Learning rate of the method's own parameters; None takes the optimizer's. They never get weight decay."""
    extra_batches: int = 0
    """Further batches of a step, drawn independently from the training set, for :meth:`explore`."""
    names: Sequence[str] = ()
    """Of the tasks."""
    configured: Sequence[str] = ()
    """Of all tasks of the configuration: options may name those that the run leaves out."""

    def prepare(self, tasks: Sequence[TaskInfo], configured: Sequence[str] = ()) -> None:
        """Learn the tasks' names, then :meth:`setup`.

        Args:
            tasks: of the run.
            configured: names of all tasks of the configuration, of which the run may have a part.

        Raises:
            ConfigError: it is no method, but what all methods are made of.
        """
        if self.from_losses is None and self.from_gradients is None:
            raise ConfigError(
                f"model.weighting {type(self).__name__} weighs neither losses nor gradients; name a method (Equal is the sum)"
            )
        self.names = [task.name for task in tasks]
        self.configured = list(configured) or list(self.names)
        self.setup(tasks)

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

    def explore(self, probe: Probe) -> None:
        """Called before each step of a method with :attr:`extra_batches`."""

    def revisit(self) -> float:
        """The share of the batch whose losses after the optimizer's step are wanted, asked once a step; 0 is none."""
        return 0.0

    def revisited(self, before: Tensor, after: Tensor, present: Tensor) -> None:
        """Called after the step that :meth:`revisit` asked for.

        Args:
            before: float64 [P] losses of some rows.
            after: the same of the same rows after the step, with the same dropout.
            present: int64 [P], positions of the tasks with a label in these rows.
        """

    def notes(self) -> dict[str, float]:
        """What else the log of a step should hold, by name; equal after a resume."""
        return {}

    @property
    def from_losses(self) -> "LossWeighting | None":
        """The part of the method that weighs losses before backward."""
        return None

    @property
    def from_gradients(self) -> "GradientWeighting | None":
        """The part of the method that weighs gradients."""
        return None

    def need_positive(self, losses: Tensor, present: Tensor) -> None:
        """Raise :class:`TrainingError` naming the task whose loss is 0 or less, where a logarithm is to be taken."""
        for position, loss in zip(present.tolist(), losses.tolist(), strict=True):
            if loss <= 0:
                name = self.names[position] if self.names else str(position)
                raise TrainingError(
                    f"model.weighting {type(self).__name__} takes the logarithm of every loss, and the loss of task '{name}' is "
                    f"{loss:g}; expected more than 0. Take a weighting without logarithms, or another loss for this task"
                )


class LossWeighting(Weighting):
    """A method that needs the losses alone.

    The step's objective is the weighted sum of the losses plus :meth:`penalty`.
    """

    @property
    def from_losses(self) -> "LossWeighting":
        """Itself."""
        return self

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


class GradientWeighting(Weighting):
    """A method that needs the tasks' gradients, of which it sees the Gramian G = J J^T; row i of J is task i's gradient.

    The step direction is the weighted sum of the rows.
    """

    heads: Literal["weighted", "unweighted"] = "unweighted"
    """What a parameter that one task alone uses is trained with: the task's loss, or that times the task's weight."""
    over: Literal["shared", "last"] = "shared"
    """Which gradients: over all shared parameters (or at the shared features), or over the last shared layer."""
    needs_rows: bool = False
    """Whether :meth:`rows` changes the gradients themselves: such a method works over parameters only."""
    blocks: int = 1
    """Into how many blocks of rows the global batch is cut for :meth:`see_blocks`, asked before each step; 1 is none."""

    @property
    def from_gradients(self) -> "GradientWeighting":
        """Itself."""
        return self

    def allocate(self, size: int, dtype: torch.dtype) -> None:
        """Make state as large as the shared parameters; called once, before any step, if :attr:`needs_rows`.

        Args:
            size: how many numbers a task's gradient has.
            dtype: their type.
        """

    def rows(self, jacobian: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """Change the gradients before their Gramian is taken and their weighted sum is the step.

        Args:
            jacobian: [P, N], averaged over processes, without any loss scale; may be changed in place.
            losses: float64 [P] on the CPU, as in :meth:`forward`.
            present: int64 [P] on the CPU.
        """
        return jacobian

    def see_blocks(self, gramians: Tensor) -> None:
        """Called before :meth:`forward` of a method with more than one of :attr:`blocks`.

        Row i of the global batch lies in block i modulo n. A block's gradient is that of what its rows add to
        the task's loss, times n: the mean over the blocks is the task's gradient. At features it is the task's gradient at the
        features of these rows, times n.

        Args:
            gramians: float64 [P, n, n] on the CPU, finite: of each present task's block gradients, where the Gramian is taken.
        """

    @abstractmethod
    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """The weights of a step.

        Args:
            gramian: float64 [P, P] on the CPU, finite, of the tasks present in the global batch.
            losses: float64 [P] on the CPU: their losses over the global batch, times their fixed importance.
            present: int64 [P] on the CPU: their positions among all tasks; None is all of them.

        Returns:
            float64 [P].
        """
