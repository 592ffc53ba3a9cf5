"""Gradients of tasks as the rows of a matrix, and the matrix of their scalar products. Pure torch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BLOCK = 512
"""Numbers of a row that are multiplied at a time in float32."""
FEW = 1 << 22
"""Numbers, up to which products are taken in float64 altogether: a few milliseconds."""


class Rows:
    """The memory of a Jacobian [T, N], kept between steps: making it anew costs more than the sums over it."""

    def __init__(self) -> None:
        self._kept = torch.empty(0, 0)

    def empty(self, tasks: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A matrix [tasks, size] of numbers of the past."""
        kept = self._kept
        if kept.shape[0] < tasks or kept.shape[1] != size or kept.dtype != dtype or kept.device != device:
            self._kept = torch.empty(tasks, size, dtype=dtype, device=device)
        return self._kept[:tasks]


def flat(gradients: Mapping[Tensor, Tensor | None], parameters: Sequence[Tensor], out: Tensor) -> None:
    """Write gradients one behind the other.

    Args:
        gradients: by parameter; 0 where there is none.
        parameters: give the order and the sizes.
        out: [N], takes them.
    """
    parts = []
    for parameter in parameters:
        gradient = gradients.get(parameter)
        if gradient is None:
            gradient = parameter.new_zeros(parameter.numel())
        parts.append(gradient.reshape(-1).to(out.dtype))
    torch.cat(parts, out=out)


def spread(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The opposite: views of a vector [N] in the shapes of the parameters, in their type."""
    pieces = torch.split(vector, [parameter.numel() for parameter in parameters])
    return [piece.view(parameter.shape).to(parameter.dtype) for piece, parameter in zip(pieces, parameters, strict=True)]


def gramian_of(rows: Tensor) -> Tensor:
    """Scalar products of the rows [P, N]: float64 [P, P].

    Where one gradient is the sum of others, methods look for an eigenvalue of 0, and rounding shows in it: it is 1e-7 from
    products in float32. Few numbers are multiplied in float64. Of many, small blocks are multiplied in float32 and added up in
    float64, which leaves 1e-8 at most and takes half the time; not where such products were allowed to be less exact (TF32).
    """
    exact = torch.get_float32_matmul_precision() == "highest" and not (rows.is_cuda and torch.backends.cuda.matmul.allow_tf32)
    if rows.dtype == torch.float64:
        return rows @ rows.T
    if exact and rows.numel() > FEW:
        count = rows.shape[1] // BLOCK
        blocks, rest = rows[:, : count * BLOCK].reshape(len(rows), count, BLOCK).transpose(0, 1), rows[:, count * BLOCK :]
        return torch.bmm(blocks, blocks.transpose(1, 2)).sum(0, dtype=torch.float64) + rest @ rest.T
    total = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for block in torch.split(rows, 1 << 15, dim=1):
        wide = block.double()
        total += wide @ wide.T
    return total


def combine(weights: Tensor, rows: Tensor) -> Tensor:
    """The weighted sum of the rows [P, N]: [N]."""
    return torch.mv(rows.T, weights.to(rows))
