"""Gradients of two independent batches."""

import torch
from torch import Tensor

from mtl_lightning.weighting.base import Probe

BLOCK = 1 << 15
"""Numbers of a row at a time."""


def cross_gramian(probe: Probe) -> tuple[Tensor, Tensor]:
    """The inner products J1 J2^T of the gradients of a step's first two further batches.

    Returns:
        float64 [P, P] on the CPU, finite, row: gradient in the first batch, column: in the second; and the positions of the P
        tasks that are present in both with finite gradients.
    """
    first, rows = probe.jacobian(1)
    second, columns = probe.jacobian(2)
    zero = torch.zeros(len(first), len(second), dtype=torch.float64, device=first.device)
    with torch.autocast(first.device.type, enabled=False):
        # In float64, a block at a time: products of float32 may have been allowed to be less exact.
        parts = zip(torch.split(first, BLOCK, dim=1), torch.split(second, BLOCK, dim=1), strict=True)
        product = sum((one.double() @ other.double().T for one, other in parts), zero).cpu()
    rows, columns = rows.cpu(), columns.cpu()
    common = rows[torch.isin(rows, columns)]
    product = product[torch.isin(rows, common)][:, torch.isin(columns, common)]
    finite = product.diagonal().isfinite()
    product = product[finite][:, finite]
    return (product, common[finite]) if product.isfinite().all() else (product[:0, :0], common[:0])
