"""One kind of label a file."""

from mtl_lightning.tasks.base import MaskedLoss, Measure, Task, Term
from mtl_lightning.tasks.classification import Classification
from mtl_lightning.tasks.depth import Depth
from mtl_lightning.tasks.multilabel import MultiLabel
from mtl_lightning.tasks.normals import SurfaceNormals
from mtl_lightning.tasks.regression import Regression
from mtl_lightning.tasks.segmentation import SemanticSegmentation

__all__ = [
    "Classification",
    "Depth",
    "MaskedLoss",
    "Measure",
    "MultiLabel",
    "Regression",
    "SemanticSegmentation",
    "SurfaceNormals",
    "Task",
    "Term",
]
