"""One network for many tasks from partly labelled data, on PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_lightning.exporting import export as export
    from mtl_lightning.loading import load as load
    from mtl_lightning.predictor import Predictor as Predictor

__version__ = "0.1.0"
_PLACES = {"load": "loading", "export": "exporting", "Predictor": "predictor"}


def __getattr__(name: str) -> Any:
    # On first use: importing the package must cost nothing, and Lightning is not needed to use what was trained.
    if name in _PLACES:
        return getattr(import_module(f"mtl_lightning.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'mtl_lightning' has no attribute '{name}'")
