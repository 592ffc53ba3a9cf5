"""The gradient engine: per-task gradients, their reduction over processes, the Gramian, the step direction. Pure torch."""

from mtl_lightning.gradients.engine import EngineOptions, GradientEngine
from mtl_lightning.gradients.held import local
from mtl_lightning.still import Dice, still

__all__ = ["Dice", "EngineOptions", "GradientEngine", "local", "still"]
