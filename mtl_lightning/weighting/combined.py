"""A method from losses and a method from gradients together."""

from collections.abc import Sequence

from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting.base import GradientWeighting, LossWeighting, Probe, TaskInfo, Weighting


class Combined(Weighting):
    """Weighs the losses by one method, and the gradients of the weighted losses by another.

    The step direction is the sum of v_t * g_t over the present tasks, g_t the gradient of w_t * L_t, w from the losses and v
    from the Gramian of the g_t: the scale is the product of both methods'. A head learns from w_t * L_t, or from v_t * w_t *
    L_t where the gradient method's ``heads`` are weighted. Each part keeps its own state.

    In YAML::

        weighting:
          class_path: Combined
          init_args: {losses: UW, gradients: PCGrad}

    Args:
        losses: the first method.
        gradients: the second.
    """

    def __init__(self, losses: LossWeighting, gradients: GradientWeighting) -> None:
        super().__init__()
        self.losses = losses
        self.gradients = gradients
        self.extra_batches = max(losses.extra_batches, gradients.extra_batches)
        self._asked: list[Weighting] = []

    @property
    def _parts(self) -> tuple[Weighting, Weighting]:
        return self.losses, self.gradients

    @property
    def from_losses(self) -> LossWeighting:
        """The first method."""
        return self.losses

    @property
    def from_gradients(self) -> GradientWeighting:
        """The second method."""
        return self.gradients

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        """Both, and the learning rate of whichever has parameters."""
        for part in self._parts:
            part.prepare(tasks, self.configured)
        rates = {part.lr for part in self._parts if next(part.parameters(), None) is not None}
        if len(rates) > 1:
            raise ConfigError(
                f"model.weighting.init_args.losses.init_args.lr is {self.losses.lr} and model.weighting.init_args.gradients."
                f"init_args.lr is {self.gradients.lr}; expected one and the same, as both parts learn in one parameter group"
            )
        self.lr = rates.pop() if rates else None

    def owners(self) -> dict[nn.Parameter, int]:
        """Of both."""
        return self.losses.owners() | self.gradients.owners()

    def epoch_end(self, losses: Tensor, seen: Tensor) -> None:
        """Both."""
        for part in self._parts:
            part.epoch_end(losses, seen)

    def notes(self) -> dict[str, float]:
        """Of both."""
        return self.losses.notes() | self.gradients.notes()

    def explore(self, probe: Probe) -> None:
        """Those that want further batches; they see the same ones."""
        for part in self._parts:
            if part.extra_batches:
                part.explore(probe)

    def revisit(self) -> float:
        """The larger of the two shares."""
        shares = [part.revisit() for part in self._parts]
        self._asked = [part for part, share in zip(self._parts, shares, strict=True) if share > 0]
        return max(shares)

    def revisited(self, before: Tensor, after: Tensor, present: Tensor) -> None:
        """Those that asked in this step."""
        for part in self._asked:
            part.revisited(before, after, present)
