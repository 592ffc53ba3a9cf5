"""One kind of label a file."""

from mtl_lightning.tasks.angle import Angle
from mtl_lightning.tasks.base import MaskedLoss, Measure, Task, Term
from mtl_lightning.tasks.classification import Classification
from mtl_lightning.tasks.depth import Depth
from mtl_lightning.tasks.heteroscedastic import HeteroscedasticRegression
from mtl_lightning.tasks.multilabel import MultiLabel
from mtl_lightning.tasks.normals import SurfaceNormals
from mtl_lightning.tasks.ordinal import Ordinal
from mtl_lightning.tasks.regression import Regression
from mtl_lightning.tasks.segmentation import SemanticSegmentation

__all__ = [
    "Angle",
    "Classification",
    "Depth",
    "HeteroscedasticRegression",
    "MaskedLoss",
    "Measure",
    "MultiLabel",
    "Ordinal",
    "Regression",
    "SemanticSegmentation",
    "SurfaceNormals",
    "Task",
    "Term",
]
