"""How much each task counts: one method a file.

Methods from losses derive from :class:`LossWeighting` and are asked before backward; those from gradients derive from
:class:`GradientWeighting` and see the Gramian of the tasks' gradients; :class:`Combined` is one of each. All of them, with what
they need and cost, are listed in ``docs/weighting.md``.
"""

from mtl_lightning.weighting.aligned import AlignedMTL
from mtl_lightning.weighting.auto_lambda import AutoLambda
from mtl_lightning.weighting.base import GradientWeighting, LossWeighting, Probe, TaskInfo, Weighting
from mtl_lightning.weighting.cagrad import CAGrad
from mtl_lightning.weighting.combined import Combined
from mtl_lightning.weighting.conflict_free import ConFIG
from mtl_lightning.weighting.cov import CoV
from mtl_lightning.weighting.db_mtl import DBMTL
from mtl_lightning.weighting.dualproj import DualProj
from mtl_lightning.weighting.dwa import DWA
from mtl_lightning.weighting.excess import ExcessMTL
from mtl_lightning.weighting.fairgrad import FairGrad
from mtl_lightning.weighting.famo import FAMO
from mtl_lightning.weighting.fixed import DataSize, Equal, Fixed
from mtl_lightning.weighting.gls import GLS
from mtl_lightning.weighting.go4align import GO4Align
from mtl_lightning.weighting.graddrop import GradDrop
from mtl_lightning.weighting.gradnorm import GradNorm
from mtl_lightning.weighting.gradvac import GradVac
from mtl_lightning.weighting.imtl import IMTL
from mtl_lightning.weighting.imtl_g import IMTLG
from mtl_lightning.weighting.imtl_l import IMTLL
from mtl_lightning.weighting.mgda import MGDA
from mtl_lightning.weighting.moco import MoCo
from mtl_lightning.weighting.modo import MoDo
from mtl_lightning.weighting.nash import NashMTL
from mtl_lightning.weighting.ntkmtl import NTKMTL, NTKMTLSR
from mtl_lightning.weighting.pcgrad import PCGrad
from mtl_lightning.weighting.rlw import RLW
from mtl_lightning.weighting.scale_invariant import ScaleInvariant
from mtl_lightning.weighting.sdmgrad import SDMGrad
from mtl_lightning.weighting.stch import STCH
from mtl_lightning.weighting.torchjd import TorchJD
from mtl_lightning.weighting.upgrad import UPGrad
from mtl_lightning.weighting.uw import UW

__all__ = [
    "DBMTL",
    "DWA",
    "FAMO",
    "GLS",
    "IMTL",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "NTKMTL",
    "NTKMTLSR",
    "RLW",
    "STCH",
    "UW",
    "AlignedMTL",
    "AutoLambda",
    "CAGrad",
    "CoV",
    "Combined",
    "ConFIG",
    "DataSize",
    "DualProj",
    "Equal",
    "ExcessMTL",
    "FairGrad",
    "Fixed",
    "GO4Align",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GradientWeighting",
    "LossWeighting",
    "MoCo",
    "MoDo",
    "NashMTL",
    "PCGrad",
    "Probe",
    "SDMGrad",
    "ScaleInvariant",
    "TaskInfo",
    "TorchJD",
    "UPGrad",
    "Weighting",
]
