"""The network of a run: its numbers and its diagram, for a row of the run's data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mtl_lightning.analysis.diagram import diagram
from mtl_lightning.analysis.layout import lay_out
from mtl_lightning.analysis.model_summary import ModelSummary, summarize_model
from mtl_lightning.analysis.model_tables import diagram_title


def summary_of(module: Any, inputs: Mapping[str, Tensor]) -> ModelSummary:
    """Count parameters and FLOPs.

    Args:
        module: of the run, with its network built.
        inputs: of one row.
    """
    return summarize_model(module.model, inputs, module.frozen_for_good)


def write_network(summary: ModelSummary, module: Any, inputs: Mapping[str, Tensor], folder: Path) -> None:
    """Draw ``model.png``; arguments as of :func:`summary_of`."""
    layout = lay_out(module.model, inputs, module.frozen_for_good)
    diagram(layout, diagram_title(summary, module.model), folder / "model.png")
