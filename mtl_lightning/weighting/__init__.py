"""How much each task counts: one method a file."""

from mtl_lightning.weighting.base import GradientWeighting, LossWeighting, Probe, TaskInfo, Weighting
from mtl_lightning.weighting.dwa import DWA
from mtl_lightning.weighting.fixed import DataSize, Equal, Fixed
from mtl_lightning.weighting.rlw import RLW
from mtl_lightning.weighting.uw import UW

__all__ = [
    "DWA",
    "RLW",
    "UW",
    "DataSize",
    "Equal",
    "Fixed",
    "GradientWeighting",
    "LossWeighting",
    "Probe",
    "TaskInfo",
    "Weighting",
]
