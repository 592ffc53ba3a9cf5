"""Whether a checkpoint fits the run, before anything of it is loaded."""

from collections.abc import Mapping, MutableMapping
from typing import Any

import lightning.pytorch as pl
import yaml
from torch import Tensor

from mtl_lightning.architectures import HardSharing
from mtl_lightning.checkpoint import restore_tasks
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import CheckpointError

LEARNING = ("weighting.", "engine.")
"""State that matters to training alone."""
TRAINING = ("loops", "optimizer_states", "lr_schedulers", "callbacks")
"""What training goes on with, beside the weights."""
LISTED = 8
"""Keys that a message names at most."""


def check_complete(checkpoint: Mapping[str, Any], path: object) -> None:
    """Refuse to train on from weights alone.

    Args:
        checkpoint: as loaded.
        path: of it, for the message.

    Raises:
        CheckpointError: it lacks what training goes on with.
    """
    if missing := [part for part in TRAINING if part not in checkpoint]:
        raise CheckpointError(
            f"{path}: holds weights without the state of training (no {', '.join(missing)}), as save_weights_only writes them, "
            "and fit goes on with both; give a checkpoint that has them. validate, test and predict can use this one, and "
            "model.encoder.init_args.weights starts a new run with its encoder"
        )


def check_state(module: pl.LightningModule, theirs: MutableMapping[str, Any], training: bool, config: str | None = None) -> None:
    """Refuse other tasks, other classes, other keys and other shapes; every one is named.

    Tasks take over what the checkpoint's learnt from their training labels.

    Args:
        module: with its network built and its tasks under ``tasks``.
        theirs: the checkpoint's ``state_dict``; what does not matter here is replaced by the module's own: the weighting's state
            unless training goes on, and the epoch's losses so far where a task has other loss terms now.
        training: whether training goes on.
        config: the configuration that the checkpoint was trained with, YAML, for the message.

    Raises:
        CheckpointError: it does not fit.
    """
    tasks: dict[str, Any] = dict(module.tasks.items())  # type: ignore[union-attr, operator]
    restore_tasks(tasks, theirs)
    mine = module.state_dict()
    if all(not key.startswith("weighting.") or key in theirs for key in mine):
        _take_watching(mine, theirs)
    # Runs of before there was anything to count.
    theirs.setdefault("bad._extra_state", mine.get("bad._extra_state"))
    losses = {key: value for key, value in mine.items() if key.startswith("train_losses.")}
    if any(key not in theirs or theirs[key].shape != value.shape for key, value in losses.items()):
        theirs.update(losses)
    if not training:
        for key in [key for key in theirs if key.startswith(LEARNING)]:
            del theirs[key]
        theirs.update({key: value for key, value in mine.items() if key.startswith(LEARNING)})
    wrong = [f"missing {key}" for key in mine if key not in theirs] + [f"unexpected {key}" for key in theirs if key not in mine]
    wrong += [
        f"{key} has shape {tuple(theirs[key].shape)}, expected {tuple(value.shape)}"
        for key, value in mine.items()
        if isinstance(value, Tensor) and key in theirs and theirs[key].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise CheckpointError(
            f"the checkpoint does not fit this model{_other_classes(module, config)}: {'; '.join(wrong[:LISTED])}{more}; "
            "use the encoder, architecture, heads and weighting that it was trained with (--config config.yaml of its run folder)"
        )


def _other_classes(module: pl.LightningModule, config: str | None) -> str:
    """Which of the network's classes are other ones than in training."""
    trained = (yaml.safe_load(config) if config else {}).get("model") or {}
    network: Any = module.model
    encoder = next((type(part).__name__ for part in network.modules() if isinstance(part, Encoder)), "")
    said = []
    for key, now in {"architecture": type(network.architecture).__name__, "encoder": encoder}.items():
        entry = trained.get(key) or (HardSharing.__name__ if key == "architecture" and trained else "")
        path = entry.get("class_path", "") if isinstance(entry, dict) else entry
        if isinstance(path, str) and (before := path.rpartition(".")[2]) and now and before != now:
            said.append(f"{key} {before}, which is {now} now")
    return f" (it was trained with {' and '.join(said)})" if said else ""


def _take_watching(mine: MutableMapping[str, Any], theirs: MutableMapping[str, Any]) -> None:
    """Gradients may be watched from now on, or no longer, under the same weighting: that is no part of what was learnt."""
    engine = {key for key in (*mine, *theirs) if key.startswith("engine.")}
    if not engine & set(mine) or not engine & set(theirs):
        for key in engine & set(theirs):
            del theirs[key]
        theirs.update({key: mine[key] for key in engine & set(mine)})
