"""Weights & Biases runs that live in the run folder, go on after a resume, and stop no training when nobody answers."""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from mtl_lightning.checkpoint import load_checkpoint
from mtl_lightning.errors import ConfigError
from mtl_lightning.storage import read_json, replace_text

FILE = "wandb.json"
"""In the run folder: which W&B run it is."""
KEY = "mtl_wandb"
"""In checkpoints: the same."""
PROJECT = "mtl_lightning"
TIMEOUT = "20"
"""Seconds that wandb may try to reach its server when a run starts, unless ``WANDB_INIT_TIMEOUT`` says otherwise."""


def prepare(entries: Sequence[Any], folder: Path, checkpoint: Path | None) -> dict[str, str] | None:
    """Fill in what the configuration of a :class:`WandbLogger` leaves open: folder, name, project, and the run's id.

    Args:
        entries: the configured loggers, as parsed (class path and arguments); changed in place.
        folder: of the run.
        checkpoint: of the run that goes on in this folder; None for a new run.

    Returns:
        What identifies the W&B run; None where no logger is W&B's.

    Raises:
        ConfigError: wandb is not installed.
    """
    found = None
    for entry in entries:
        if not _is_wandb(entry):
            continue
        if find_spec("wandb") is None:
            raise ConfigError('trainer.logger: WandbLogger needs wandb: pip install "mtl-lightning[wandb]"')
        arguments = entry.init_args
        saved = _saved(folder, checkpoint)
        if arguments.save_dir in (None, ".") and arguments.dir is None:
            arguments.save_dir = str(folder)
        arguments.name = arguments.name or folder.name
        arguments.project = arguments.project or saved.get("project") or os.environ.get("WANDB_PROJECT", PROJECT)
        given = arguments.id or arguments.version
        arguments.id = given or saved.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        arguments.version = None
        found = {"id": str(arguments.id), "project": str(arguments.project)}
    return found


def _is_wandb(entry: Any) -> bool:
    path = getattr(entry, "class_path", "")
    module, _, name = path.rpartition(".")
    kind = getattr(import_module(module), name) if module else None
    return isinstance(kind, type) and issubclass(kind, WandbLogger)


def _saved(folder: Path, checkpoint: Path | None) -> Mapping[str, str]:
    if checkpoint is None:
        return {}
    return read_json(folder / FILE) or load_checkpoint(checkpoint).get(KEY) or {}


@rank_zero_only
def connect(trainer: pl.Trainer, entries: Sequence[Any], folder: Path, run: Mapping[str, str]) -> None:
    """Start the W&B run; where its server cannot be reached the run is kept offline in the run folder, and that is said.

    Args:
        trainer: its W&B logger may be replaced.
        entries: what :func:`prepare` filled in.
        folder: of the run; takes the run's id before anything is sent.
        run: what :func:`prepare` returned.
    """
    import wandb

    replace_text(folder / FILE, json.dumps(dict(run)) + "\n")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", TIMEOUT)
    chosen = [entry for entry in entries if _is_wandb(entry)]
    for logger in wandb_loggers(trainer):
        entry = chosen.pop(0)
        try:
            _ = logger.experiment
        except (wandb.errors.Error, OSError) as error:
            wandb.teardown()  # a session that failed refuses the same run's id
            rank_zero_warn(
                f"W&B cannot be used ({str(error).strip().splitlines()[0]}): the run is kept offline in {folder / 'wandb'}; "
                "send it later with wandb sync"
            )
            arguments = entry.init_args.as_dict() | (entry.get("dict_kwargs") or {}) | {"offline": True, "log_model": False}
            offline = type(logger)(**arguments)
            trainer.loggers = [offline if other is logger else other for other in trainer.loggers]
            _ = offline.experiment


def wandb_loggers(trainer: pl.Trainer) -> list[WandbLogger]:
    """The W&B loggers among the trainer's."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
