"""How tasks share."""

from mtl_lightning.architectures.adapters import Adapter, AdapterFactory, BottleneckAdapter, TaskAdapters
from mtl_lightning.architectures.base import Architecture, ArchitectureFactory, Table
from mtl_lightning.architectures.conditioned import TaskConditioned
from mtl_lightning.architectures.hard import HardSharing
from mtl_lightning.architectures.lora import LoRA
from mtl_lightning.architectures.mtan import MTAN

__all__ = [
    "MTAN",
    "Adapter",
    "AdapterFactory",
    "Architecture",
    "ArchitectureFactory",
    "BottleneckAdapter",
    "HardSharing",
    "LoRA",
    "Table",
    "TaskAdapters",
    "TaskConditioned",
]
