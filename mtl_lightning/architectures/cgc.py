"""One level of shared experts and experts of each task."""

from collections.abc import Sequence

from mtl_lightning.architectures.ple import PLE
from mtl_lightning.encoders.base import Encoder


class CGC(PLE):
    """Customized gate control (Tang et al., RecSys 2020, section 4.1): the one-level form of :class:`PLE`.

    Behind a trunk of the first stages each task mixes shared experts and experts of its own, which are copies of all the other
    stages, by a softmax gate over the trunk's last features, averaged over their valid cells. The experts' whole pyramids are
    mixed, class tokens included, each level with the same weights [B, shared_experts + own_experts].

    Shared: trunk and shared experts. A task's own: its experts, which run only if it is asked for, and its gate. Cost: the
    trunk once and the rest shared_experts + tasks * own_experts times, in parameters and in FLOPs.

    With ``shared: 0`` a gate is a learnt vector of logits without input. Without own experts take
    :class:`~mtl_lightning.architectures.mmoe.MMoE`.

    Args:
        encoder: trunk and first shared expert; the other experts are copies of that.
        tasks: names.
        shared_experts: >= 1.
        own_experts: of each task, >= 1.
        shared: stages of the trunk, 0 to one less than there are.

    Raises:
        ConfigError: a number out of range, or an encoder without stages.
    """

    def __init__(
        self, encoder: Encoder, tasks: Sequence[str], shared_experts: int = 1, own_experts: int = 1, shared: int = 1
    ) -> None:
        super().__init__(encoder, tasks, shared_experts, own_experts, shared, [len(encoder.stages)])
