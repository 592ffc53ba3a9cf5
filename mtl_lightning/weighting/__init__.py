"""How much each task counts: one method a file."""

from mtl_lightning.weighting.base import GradientWeighting, LossWeighting, Probe, TaskInfo, Weighting
from mtl_lightning.weighting.cagrad import CAGrad
from mtl_lightning.weighting.dwa import DWA
from mtl_lightning.weighting.fairgrad import FairGrad
from mtl_lightning.weighting.fixed import DataSize, Equal, Fixed
from mtl_lightning.weighting.mgda import MGDA
from mtl_lightning.weighting.nash import NashMTL
from mtl_lightning.weighting.rlw import RLW
from mtl_lightning.weighting.uw import UW

__all__ = [
    "DWA",
    "MGDA",
    "RLW",
    "UW",
    "CAGrad",
    "DataSize",
    "Equal",
    "FairGrad",
    "Fixed",
    "GradientWeighting",
    "LossWeighting",
    "NashMTL",
    "Probe",
    "TaskInfo",
    "Weighting",
]
