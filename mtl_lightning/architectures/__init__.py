"""How tasks share."""

from mtl_lightning.architectures.base import Architecture, ArchitectureFactory, Table
from mtl_lightning.architectures.hard import HardSharing

__all__ = ["Architecture", "ArchitectureFactory", "HardSharing", "Table"]
