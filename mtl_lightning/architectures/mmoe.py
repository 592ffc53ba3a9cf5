"""Experts that all tasks share, and a softmax gate for each task."""

from collections.abc import Sequence

from mtl_lightning.architectures.experts import Mixture
from mtl_lightning.architectures.gates import Gate
from mtl_lightning.encoders.base import Encoder


class MMoE(Mixture):
    """Multi-gate mixture of experts: a softmax gate for each task.

    Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018. The first
    stages are one trunk, copies of the rest are the experts. A task's gate is a linear layer with softmax over the trunk's last
    features, averaged over their valid cells; it mixes the experts' whole pyramids, class tokens included, each level with the
    same weights [B, experts]. With one expert this is hard sharing.

    Shared: trunk and experts. A task's own: its gate, (channels + 1) * experts numbers. Cost: the trunk once and the rest once
    for each expert, in parameters and in FLOPs, whatever the number of tasks, and for each task one multiplication and
    addition per number of the experts' pyramids.

    Where ours differs: the paper's experts are layers over one input vector, which its gates read too. Pooled raw pixels or
    token ids say nothing, so with ``shared: 0`` a gate is a learnt vector of logits without input.

    Args:
        encoder: trunk and first expert.
        tasks: names.
        experts: how many, >= 1.
        shared: stages of the trunk, 0 to one less than there are.

    Raises:
        ConfigError: experts or shared out of range, or an encoder without stages.
    """

    shards = True

    def __init__(self, encoder: Encoder, tasks: Sequence[str], experts: int = 4, shared: int = 1) -> None:
        super().__init__(encoder, tasks, experts, shared, Gate)
