"""How tasks share."""

from mtl_lightning.architectures.base import Architecture, ArchitectureFactory, Table
from mtl_lightning.architectures.cross_stitch import CrossStitch
from mtl_lightning.architectures.hard import HardSharing
from mtl_lightning.architectures.ltb import LTB
from mtl_lightning.architectures.nddr import NDDR
from mtl_lightning.architectures.soft import SoftSharing
from mtl_lightning.architectures.split import Group, SplitAt

__all__ = [
    "LTB",
    "NDDR",
    "Architecture",
    "ArchitectureFactory",
    "CrossStitch",
    "Group",
    "HardSharing",
    "SoftSharing",
    "SplitAt",
    "Table",
]
