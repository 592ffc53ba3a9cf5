"""Data modules, and the transforms and loaders they share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_lightning.data.augment import RandAugmentWithLabels, TrivialAugmentWithLabels
    from mtl_lightning.data.base import MultiTaskDataModule
    from mtl_lightning.data.clinc150 import Clinc150DataModule
    from mtl_lightning.data.dataset import LabelledDataset
    from mtl_lightning.data.folder import FolderDataModule
    from mtl_lightning.data.manifest import ManifestDataModule
    from mtl_lightning.data.office import OfficeDataModule
    from mtl_lightning.data.scenes import ScenesDataModule
    from mtl_lightning.data.text.manifest import TextManifestDataModule
    from mtl_lightning.data.text.module import TextDataModule
    from mtl_lightning.data.text.tokens import TokenizerOptions
    from mtl_lightning.data.transforms import RandomScaleCrop
    from mtl_lightning.mixing import CutMix, MixUp

__all__ = [
    "Clinc150DataModule",
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
    "TextDataModule",
    "TextManifestDataModule",
    "TokenizerOptions",
    "TrivialAugmentWithLabels",
]
_PLACES = {
    "Clinc150DataModule": "data.clinc150",
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
    "TextDataModule": "data.text.module",
    "TextManifestDataModule": "data.text.manifest",
    "TokenizerOptions": "data.text.tokens",
    "TrivialAugmentWithLabels": "data.augment",
}


def __getattr__(name: str) -> Any:
    # On first use: a trained model prepares its pictures with what is here, and needs no data module and no Lightning.
    if name in _PLACES:
        return getattr(import_module(f"mtl_lightning.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'mtl_lightning.data' has no attribute '{name}'")
