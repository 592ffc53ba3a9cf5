"""Half precision with a loss scaler on a CPU, where Lightning would quietly take bfloat16."""

from lightning.pytorch.plugins import MixedPrecision
from torch.amp import GradScaler


class HalfOnCpu(MixedPrecision):
    """Args: the scale that the scaler starts with."""

    def __init__(self, scale: float = 2.0**10) -> None:
        super().__init__("16-mixed", "cpu", GradScaler("cpu", init_scale=scale, growth_interval=1000))
