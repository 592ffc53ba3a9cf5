"""What the forward pass of a step leaves for its backward pass, and gradients by parameter. Pure torch."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mtl_lightning.objective import Losses

Gradients = dict[Tensor, Tensor | None]
"""By parameter; None where there is none."""


class Held:
    """The losses of the tasks that take part in a step.

    Args:
        losses: of the step.
        present: positions of the tasks that take part.
        factors: what the part of the method that looks at losses multiplies them by; None is 1.
        learnt: objective of that part's own parameters, if it has some.
        penalties: added behind the weighting.
    """

    def __init__(
        self,
        losses: Losses,
        present: Sequence[int],
        factors: Sequence[float] | None = None,
        learnt: Tensor | None = None,
        penalties: Iterable[Tensor] = (),
    ) -> None:
        names = list(losses.scalars)
        self.present, self.learnt, self.penalties = list(present), learnt, list(penalties)
        self.factors = [1.0] * len(self.present) if factors is None else list(factors)
        self.names = [names[position] for position in self.present]
        self.scalars = [losses.scalars[name] for name in self.names]
        self.blocks = [losses.blocks.get(name, []) for name in self.names]
        chosen = [losses.numbers[position] for position in self.present]
        self.values = torch.tensor(chosen, dtype=torch.float64) * torch.tensor(self.factors, dtype=torch.float64)
        self.raw = losses.values.new_tensor(float(self.values.sum())).requires_grad_()

    def only(self, rows: Sequence[int]) -> None:
        """Leave out the other tasks."""
        self.present = [self.present[row] for row in rows]
        self.names = [self.names[row] for row in rows]
        self.scalars = [self.scalars[row] for row in rows]
        self.blocks = [self.blocks[row] for row in rows]
        self.factors = [self.factors[row] for row in rows]
        self.values = self.values[list(rows)]

    def gradient(
        self, rows: Sequence[int], parameters: Sequence[Tensor], scale: Tensor, keep: bool, weights: Tensor | None = None
    ) -> Gradients:
        """The gradient of the sum of some losses.

        Args:
            rows: which.
            parameters: by these.
            scale: multiplies all of them.
            keep: whether the graph is needed again.
            weights: multiply each of them; None is 1.
        """
        numbers = [1.0] * len(rows) if weights is None else weights.tolist()
        outputs = [self.scalars[row] for row in rows]
        factors = [scale * (self.factors[row] * number) for row, number in zip(rows, numbers, strict=True)]
        return gradient_of(outputs, parameters, factors, keep)


def gradient_of(outputs: Sequence[Tensor], parameters: Sequence[Tensor], factors: Sequence[Tensor], keep: bool) -> Gradients:
    """The gradient of a weighted sum of scalars; no hook of a whole parameter fires."""
    scales = [factor.to(output) for factor, output in zip(factors, outputs, strict=True)]
    return derivative(outputs, parameters, scales, keep)


def derivative(outputs: Sequence[Tensor], parameters: Sequence[Tensor], directions: Sequence[Tensor], keep: bool) -> Gradients:
    """The gradient of the outputs' scalar products with directions.

    Of parameters in parts, each process gets its part of the mean over processes: there hooks gather and scatter.
    """
    if not outputs or not parameters:
        return {}
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        found = torch.autograd.grad(outputs, parameters, directions, retain_graph=keep, allow_unused=True)
        return dict(zip(parameters, found, strict=True))
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    torch.autograd.backward(outputs, directions, retain_graph=keep)
    taken = {parameter: parameter.grad for parameter in parameters}
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
    return taken


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be in parts."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def write(gradients: Mapping[Tensor, Tensor | None]) -> None:
    """Add to ``.grad``, in the memory layout of the parameter."""
    taken = set()
    for parameter, gradient in gradients.items():
        if gradient is None:
            continue
        if parameter.grad is not None:
            parameter.grad.add_(gradient)
            continue
        memory = local(gradient).data_ptr()
        if gradient.stride() == parameter.stride() and gradient.dtype == parameter.dtype and memory not in taken:
            # Two summands get one and the same tensor from autograd; clipping in place would scale it twice.
            taken.add(memory)
            parameter.grad = gradient
        else:
            parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
