"""How tasks share."""

from mtl_lightning.architectures.adapters import Adapter, AdapterFactory, BottleneckAdapter, TaskAdapters
from mtl_lightning.architectures.base import Architecture, ArchitectureFactory, Table
from mtl_lightning.architectures.cgc import CGC
from mtl_lightning.architectures.conditioned import TaskConditioned
from mtl_lightning.architectures.cross_stitch import CrossStitch
from mtl_lightning.architectures.dselect_k import DSelectK
from mtl_lightning.architectures.hard import HardSharing
from mtl_lightning.architectures.lora import LoRA
from mtl_lightning.architectures.ltb import LTB
from mtl_lightning.architectures.mmoe import MMoE
from mtl_lightning.architectures.mtan import MTAN
from mtl_lightning.architectures.nddr import NDDR
from mtl_lightning.architectures.ple import PLE
from mtl_lightning.architectures.soft import SoftSharing
from mtl_lightning.architectures.split import Group, SplitAt

__all__ = [
    "CGC",
    "LTB",
    "MTAN",
    "NDDR",
    "PLE",
    "Adapter",
    "AdapterFactory",
    "Architecture",
    "ArchitectureFactory",
    "BottleneckAdapter",
    "CrossStitch",
    "DSelectK",
    "Group",
    "HardSharing",
    "LoRA",
    "MMoE",
    "SoftSharing",
    "SplitAt",
    "Table",
    "TaskAdapters",
    "TaskConditioned",
]
