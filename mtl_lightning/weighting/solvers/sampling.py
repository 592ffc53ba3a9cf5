"""Gradients of two independent batches."""

import torch
from torch import Tensor

from mtl_lightning.weighting.base import Probe


def cross_gramian(probe: Probe) -> tuple[Tensor, Tensor]:
    """The inner products J1 J2^T of the gradients of a step's first two further batches.

    Returns:
        float64 [P, P] on the CPU, finite, row: gradient in the first batch, column: in the second; and the positions of the P
        tasks that are present in both with finite gradients.
    """
    first, rows = probe.jacobian(1)
    second, columns = probe.jacobian(2)
    with torch.autocast(first.device.type, enabled=False):
        product = (first @ second.T).cpu().double()
    rows, columns = rows.cpu(), columns.cpu()
    common = rows[torch.isin(rows, columns)]
    product = product[torch.isin(rows, common)][:, torch.isin(columns, common)]
    finite = product.diagonal().isfinite()
    product = product[finite][:, finite]
    return (product, common[finite]) if product.isfinite().all() else (product[:0, :0], common[:0])
