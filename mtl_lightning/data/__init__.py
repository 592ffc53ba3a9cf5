"""Data modules, and the transforms and loaders they share."""

from mtl_lightning.data.augment import RandAugmentWithLabels, TrivialAugmentWithLabels
from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.folder import FolderDataModule
from mtl_lightning.data.manifest import ManifestDataModule
from mtl_lightning.data.scenes import ScenesDataModule
from mtl_lightning.data.transforms import RandomScaleCrop
from mtl_lightning.mixing import CutMix, MixUp

__all__ = [
    "CutMix",
    "FolderDataModule",
    "LabelledDataset",
    "ManifestDataModule",
    "MixUp",
    "MultiTaskDataModule",
    "RandAugmentWithLabels",
    "RandomScaleCrop",
    "ScenesDataModule",
    "TrivialAugmentWithLabels",
]
