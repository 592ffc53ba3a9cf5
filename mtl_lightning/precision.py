"""Which of Lightning's precisions give right numbers here."""

import torch

from mtl_lightning.errors import ConfigError

HALF = {"16": "16-mixed", "bf16": "bf16-mixed"}
"""What Lightning's short names stand for."""


def check_precision(precision: object, accelerator: object) -> None:
    """Refuse what would train in another precision than it says, or lose numbers.

    Args:
        precision: ``trainer.precision``.
        accelerator: ``trainer.accelerator``.

    Raises:
        ConfigError: fp16 on a CPU, where Lightning takes bf16 instead; weights themselves in half precision.
    """
    name = HALF.get(str(precision), str(precision))
    if name in ("16-true", "bf16-true"):
        mixed = name.replace("true", "mixed")
        raise ConfigError(
            f"trainer.precision is {name}: weights, batch statistics, the weighting's memory and the sums of an epoch's losses "
            f"would be kept in half precision, where small steps vanish and counts above 256 are wrong; set it to {mixed}"
        )
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if name == "16-mixed" and on_cpu:
        raise ConfigError(
            "trainer.precision is 16-mixed, and on a CPU Lightning would train with bf16-mixed instead; set it to bf16-mixed or "
            "32-true, or train on a GPU"
        )


def for_predictions(precision: object) -> object:
    """The precision of predictions: full, as ``load(run).predict`` has it, however the run was trained; double stays."""
    return precision if precision is None or str(precision) in ("64", "64-true") else "32-true"
