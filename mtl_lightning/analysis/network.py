"""The network of a run: its numbers and its diagram, for a row of the run's data."""

from pathlib import Path
from typing import Any

from mtl_lightning.analysis.diagram import diagram
from mtl_lightning.analysis.layout import lay_out
from mtl_lightning.analysis.model_summary import ModelSummary, summarize_model
from mtl_lightning.analysis.model_tables import diagram_title


def summary_of(module: Any, data: Any) -> ModelSummary:
    """Count parameters and FLOPs.

    Args:
        module: of the run, with its network built.
        data: its data module, whose first training row is taken.
    """
    return summarize_model(module.model, data.first_row().inputs, module.frozen_for_good)


def write_network(summary: ModelSummary, module: Any, data: Any, folder: Path) -> None:
    """Draw ``model.png``."""
    layout = lay_out(module.model, data.first_row().inputs, module.frozen_for_good)
    diagram(layout, diagram_title(summary, module.model), folder / "model.png")
