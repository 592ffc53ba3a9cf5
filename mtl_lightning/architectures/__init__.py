"""How tasks share."""

from mtl_lightning.architectures.base import Architecture, ArchitectureFactory, Table
from mtl_lightning.architectures.cgc import CGC
from mtl_lightning.architectures.dselect_k import DSelectK
from mtl_lightning.architectures.hard import HardSharing
from mtl_lightning.architectures.mmoe import MMoE
from mtl_lightning.architectures.ple import PLE

__all__ = ["CGC", "PLE", "Architecture", "ArchitectureFactory", "DSelectK", "HardSharing", "MMoE", "Table"]
