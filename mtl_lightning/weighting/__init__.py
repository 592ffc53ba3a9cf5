"""How much each task counts: one method a file."""

from mtl_lightning.weighting.base import GradientWeighting, LossWeighting, Probe, TaskInfo, Weighting
from mtl_lightning.weighting.db_mtl import DBMTL
from mtl_lightning.weighting.dwa import DWA
from mtl_lightning.weighting.excess import ExcessMTL
from mtl_lightning.weighting.fixed import DataSize, Equal, Fixed
from mtl_lightning.weighting.graddrop import GradDrop
from mtl_lightning.weighting.gradnorm import GradNorm
from mtl_lightning.weighting.moco import MoCo
from mtl_lightning.weighting.modo import MoDo
from mtl_lightning.weighting.ntkmtl import NTKMTL, NTKMTLSR
from mtl_lightning.weighting.rlw import RLW
from mtl_lightning.weighting.sdmgrad import SDMGrad
from mtl_lightning.weighting.uw import UW

__all__ = [
    "DBMTL",
    "DWA",
    "NTKMTL",
    "NTKMTLSR",
    "RLW",
    "UW",
    "DataSize",
    "Equal",
    "ExcessMTL",
    "Fixed",
    "GradDrop",
    "GradNorm",
    "GradientWeighting",
    "LossWeighting",
    "MoCo",
    "MoDo",
    "Probe",
    "SDMGrad",
    "TaskInfo",
    "Weighting",
]
