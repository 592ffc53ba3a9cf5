"""What a step with a number that is not finite must not spoil: gradients that add up, and running statistics. Pure torch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.objective import Reduce


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all numbers of some tensors are finite, with one look at the device where they are."""
    if not tensors:
        return True
    # The norm of very large finite numbers is infinite, too: only then each of them is looked at.
    norm = nn.utils.get_total_norm(tensors)
    return bool(norm.isfinite()) or all(bool(tensor.isfinite().all()) for tensor in tensors)


def agreed(mine: bool, reduce: Reduce, world: int, device: torch.device) -> bool:
    """Whether all processes say yes.

    Args:
        mine: what this one says.
        reduce: sums a tensor over processes; not called if there is one.
        world: their number.
        device: for the message.
    """
    return mine if world == 1 else int(reduce(torch.tensor(float(mine), device=device))) == world


class Buffers:
    """The buffers of a network (batch norm's running means, say) as they were before a forward pass.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._owners = [
            (module, names) for module in model.modules() if (names := [name for name, _ in module.named_buffers(recurse=False)])
        ]
        self._copies: list[Tensor] = []

    def _now(self) -> list[Tensor]:
        return [getattr(module, name).data for module, names in self._owners for name in names]

    def numbers(self) -> list[Tensor]:
        """Those that could be spoilt."""
        return [buffer for buffer in self._now() if buffer.is_floating_point()]

    def keep(self) -> None:
        """Remember them."""
        now = self._now()
        if self._copies and self._copies[0].device == now[0].device and self._copies[0].dtype == now[0].dtype:
            torch._foreach_copy_(self._copies, now)
        else:
            self._copies = [buffer.clone() for buffer in now]

    def put_back(self, every: bool) -> None:
        """Set them to what they were.

        Args:
            every: otherwise those alone of layers in which a number is not finite.
        """
        copies = iter(self._copies)
        for module, names in self._owners:
            pairs = [(getattr(module, name).data, next(copies)) for name in names]
            if every or not all_finite([buffer for buffer, _ in pairs if buffer.is_floating_point()]):
                for buffer, copy in pairs:
                    buffer.copy_(copy)


class Aside:
    """Gradients of a step's earlier micro-batches, set aside so that the next one cannot spoil them.

    Args:
        parameters: whose.
        mean: over processes, where one is about to be taken of the earlier and the new ones together: the earlier ones then stay
            in place, and copies are set aside. None where they need none any more, or not yet.

    Attributes:
        earlier: whether there are any.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], mean: Callable[[Tensor], Tensor] | None = None) -> None:
        self._mean = mean
        self._kept = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        self.earlier = bool(self._kept)
        if mean is not None:
            self._kept = [(parameter, gradient.clone()) for parameter, gradient in self._kept]
            return
        for parameter, _ in self._kept:
            parameter.grad = None

    def add(self) -> None:
        """Add them to the new ones."""
        if self._mean is None:
            for parameter, gradient in self._kept:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        self._kept = []

    def only(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take the new ones away, of all parameters.

        Args:
            parameters: all.
        """
        for parameter in parameters:
            parameter.grad = None
        for parameter, gradient in self._kept:
            parameter.grad = gradient if self._mean is None else self._mean(gradient)
        self._kept = []
