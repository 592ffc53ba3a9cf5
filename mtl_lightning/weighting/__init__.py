"""How much each task counts: one method a file."""

from mtl_lightning.weighting.aligned import AlignedMTL
from mtl_lightning.weighting.base import GradientWeighting, LossWeighting, Probe, TaskInfo, Weighting
from mtl_lightning.weighting.conflict_free import ConFIG
from mtl_lightning.weighting.dualproj import DualProj
from mtl_lightning.weighting.dwa import DWA
from mtl_lightning.weighting.fixed import DataSize, Equal, Fixed
from mtl_lightning.weighting.gradvac import GradVac
from mtl_lightning.weighting.imtl_g import IMTLG
from mtl_lightning.weighting.pcgrad import PCGrad
from mtl_lightning.weighting.rlw import RLW
from mtl_lightning.weighting.torchjd import TorchJD
from mtl_lightning.weighting.upgrad import UPGrad
from mtl_lightning.weighting.uw import UW

__all__ = [
    "DWA",
    "IMTLG",
    "RLW",
    "UW",
    "AlignedMTL",
    "ConFIG",
    "DataSize",
    "DualProj",
    "Equal",
    "Fixed",
    "GradVac",
    "GradientWeighting",
    "LossWeighting",
    "PCGrad",
    "Probe",
    "TaskInfo",
    "TorchJD",
    "UPGrad",
    "Weighting",
]
