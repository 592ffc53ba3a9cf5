"""Data modules, and the transforms and loaders they share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_lightning.data.base import MultiTaskDataModule
    from mtl_lightning.data.dataset import LabelledDataset
    from mtl_lightning.data.manifest import ManifestDataModule
    from mtl_lightning.data.scenes import ScenesDataModule
    from mtl_lightning.data.transforms import RandomScaleCrop

__all__ = ["LabelledDataset", "ManifestDataModule", "MultiTaskDataModule", "RandomScaleCrop", "ScenesDataModule"]
_PLACES = {
    "LabelledDataset": "dataset",
    "ManifestDataModule": "manifest",
    "MultiTaskDataModule": "base",
    "RandomScaleCrop": "transforms",
    "ScenesDataModule": "scenes",
}


def __getattr__(name: str) -> Any:
    # On first use: a trained model prepares its pictures with what is here, and needs no data module and no Lightning.
    if name in _PLACES:
        return getattr(import_module(f"mtl_lightning.data.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'mtl_lightning.data' has no attribute '{name}'")
