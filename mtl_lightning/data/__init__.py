"""Data modules, and the transforms and loaders they share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_lightning.data.augment import RandAugmentWithLabels, TrivialAugmentWithLabels
    from mtl_lightning.data.base import MultiTaskDataModule
    from mtl_lightning.data.dataset import LabelledDataset
    from mtl_lightning.data.folder import FolderDataModule
    from mtl_lightning.data.manifest import ManifestDataModule
    from mtl_lightning.data.office import OfficeDataModule
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
    "OfficeDataModule",
    "RandAugmentWithLabels",
    "RandomScaleCrop",
    "ScenesDataModule",
    "TrivialAugmentWithLabels",
]
_PLACES = {
    "CutMix": "mixing",
    "FolderDataModule": "data.folder",
    "LabelledDataset": "data.dataset",
    "ManifestDataModule": "data.manifest",
    "MixUp": "mixing",
    "MultiTaskDataModule": "data.base",
    "OfficeDataModule": "data.office",
    "RandAugmentWithLabels": "data.augment",
    "RandomScaleCrop": "data.transforms",
    "ScenesDataModule": "data.scenes",
    "TrivialAugmentWithLabels": "data.augment",
}


def __getattr__(name: str) -> Any:
    # On first use: a trained model prepares its pictures with what is here, and needs no data module and no Lightning.
    if name in _PLACES:
        return getattr(import_module(f"mtl_lightning.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'mtl_lightning.data' has no attribute '{name}'")
