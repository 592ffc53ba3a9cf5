"""Impartial multi-task learning."""

from mtl_lightning.weighting.combined import Combined
from mtl_lightning.weighting.imtl_g import IMTLG
from mtl_lightning.weighting.imtl_l import IMTLL


class IMTL(Combined):
    """IMTL (Liu et al.: Towards Impartial Multi-task Learning, ICLR 2021): IMTL-L and IMTL-G together.

    IMTL-L brings the losses to one scale, exp(s_t) * L_t with learnt s_t; the shared parameters take the direction that projects
    equally on all gradients of these scaled losses, by weights of sum 1. Heads and s learn from the scaled losses without
    the weights of the gradients, as in the paper.

    Args:
        lr: learning rate of s; None takes the optimizer's.
    """

    def __init__(self, lr: float | None = None) -> None:
        super().__init__(IMTLL(lr), IMTLG())
