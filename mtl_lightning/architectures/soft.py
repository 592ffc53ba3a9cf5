"""A trunk for each task, held together by a penalty."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_lightning.architectures.columns import Columns
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError


class SoftSharing(Columns):
    """Soft parameter sharing: Duong et al., "Low Resource Dependency Parsing", ACL 2015.

    Each task has an encoder of its own, and the penalty ``distance`` pulls them together::

        strength * 2 * sum over tasks of |weights - mean of all tasks' weights|^2

    With two tasks that is the paper's squared L2 distance of the two. With more, each trunk is pulled to the mean with the same
    force, however many there are. All parameters of the encoder count, those of norms too. The trunks start from the same
    weights: the units of separate draws do not correspond, and nothing would be gained by pulling one to the other.

    No parameter is shared: each trunk belongs to its task, and the penalty is no task's loss. So weightings from gradients have
    nothing to balance, and refuse. With T tasks, parameters and FLOPs are T times the encoder's; the penalty reads all
    parameters in every training step.

    Args:
        encoder: with stages.
        tasks: names.
        strength: of the penalty, >= 0; 0 is separate networks.

    Raises:
        ConfigError: a negative strength.
    """

    def __init__(self, encoder: Encoder, tasks: Sequence[str], strength: float = 1e-3) -> None:
        if not 0 <= strength < float("inf"):
            raise ConfigError(f"model.architecture.init_args.strength is {strength}, expected a number >= 0")
        super().__init__(encoder, tasks, fresh=False)
        self.strength = strength

    def penalties(self) -> dict[str, Tensor]:
        """``distance``; nothing for a single task."""
        if len(self.tasks) == 1:
            return {}
        parts = []
        for weights in zip(*(encoder.parameters() for encoder in self.encoders), strict=True):
            with torch.no_grad():
                mean = torch.stack(weights).mean(0)
            # Not through the mean: the deviations add up to 0, and with them what would come that way.
            parts += [F.mse_loss(weight, mean, reduction="sum") for weight in weights]
        return {"distance": 2 * self.strength * torch.stack(parts).sum()}
