"""Data modules, and the transforms and loaders they share."""

from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.manifest import ManifestDataModule
from mtl_lightning.data.scenes import ScenesDataModule
from mtl_lightning.data.transforms import RandomScaleCrop

__all__ = ["LabelledDataset", "ManifestDataModule", "MultiTaskDataModule", "RandomScaleCrop", "ScenesDataModule"]
