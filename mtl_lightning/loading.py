"""From a run's folder to its trained model in plain torch."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn
from torchvision.transforms.v2 import Transform

from mtl_lightning.architectures import Architecture, HardSharing
from mtl_lightning.checkpoint import load_checkpoint, restore_tasks
from mtl_lightning.data.opening import MAX_PIXELS
from mtl_lightning.data.prepare import Preparation
from mtl_lightning.data.text.prepare import TextPreparation
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.encoders.weights import without_pretrained
from mtl_lightning.errors import CheckpointError, ConfigError
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.predictor import Predictor, choose
from mtl_lightning.runs import BEST, LAST, PREVIOUS
from mtl_lightning.storage import expanded
from mtl_lightning.tasks.base import Task

INPUTS = ("eval_transforms", "image_size", "channels")


def load(run: str | os.PathLike[str], tasks: Sequence[str] | None = None, device: str | torch.device = "cpu") -> Predictor:
    """The trained model of a run, in evaluation mode, with everything that its predictions need.

    The checkpoint alone is read: the configuration is in it, and no training data and no pretrained weights are needed. The
    classes that the configuration names are imported, so a checkpoint is code in the way a YAML is: load what you trust.

    Args:
        run: a run's folder (its ``best.ckpt``, or ``last.ckpt`` where nothing was validated), or a checkpoint.
        tasks: those to predict; None means all. The others' heads are left out.
        device: where the model goes.

    Raises:
        CheckpointError: there is no such run or checkpoint, or it does not fit its own configuration.
        ConfigError: an unknown task, or a configuration that names classes that are not installed here.
    """
    path = _find(expanded(run))
    checkpoint = load_checkpoint(path)
    text = checkpoint.get("mtl_config")
    if not text:
        raise CheckpointError(f"{path}: has no configuration in it; use a checkpoint of python -m mtl_lightning fit")
    config, state = yaml.safe_load(text), checkpoint["state_dict"]
    built = _build(config["model"], path)
    only = config["model"].get("only")
    kept: dict[str, Task] = {name: task for name, task in built.tasks.items() if only is None or name in only}
    for name, task in kept.items():
        task.name = name
    restore_tasks(kept, state)
    chosen = choose(tasks, kept, "tasks")
    architecture = (built.architecture or HardSharing)(built.encoder, list(kept))
    model = MultiTaskModel(kept, architecture, config["model"].get("inputs"))
    try:
        model.load_state_dict(_part(state, "model."))
        nn.ModuleDict(kept).load_state_dict(_part(state, "tasks."))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the classes that its configuration names: {error}") from error
    predictor = Predictor(model, {name: kept[name] for name in chosen}, _preparation(config["data"], checkpoint, path))
    return predictor.eval().to(device)


def _find(run: Path) -> Path:
    if run.is_file():
        return run
    if not run.is_dir():
        raise CheckpointError(f"{run}: there is no such run folder or checkpoint")
    for name in (BEST, LAST, PREVIOUS):
        for path in (run / "checkpoints" / name, run / name):
            if path.is_file():
                return path
    if (run / "config.yaml").is_file():
        raise CheckpointError(f"{run}: this run has no checkpoint yet (checkpoints/best.ckpt or last.ckpt); train it with fit")
    raise CheckpointError(f"{run}: is no run folder (it has no config.yaml and no checkpoints); give a folder like runs/NAME")


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _instantiate(types: Mapping[str, Any], values: Mapping[str, Any], path: Path) -> Any:
    """The objects that a part of the configuration describes."""
    # As the command line does: jsonargparse 5, which we exclude, will drop a name.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    parser = ArgumentParser(exit_on_error=False)
    for name, kind in types.items():
        parser.add_argument(f"--{name}", type=kind)
    try:
        return parser.instantiate_classes(parser.parse_object(dict(values)))
    except (ArgumentError, ValueError, ImportError) as error:
        raise ConfigError(
            f"{path}: what its configuration names cannot be built here ({error}); install the packages of the run, or add "
            "their folder to PYTHONPATH"
        ) from error


def _build(config: Mapping[str, Any], path: Path) -> Any:
    types = {
        "tasks": dict[str, Task],
        "encoder": Encoder,
        "architecture": Callable[[Encoder, Sequence[str]], Architecture] | None,
    }
    values = {"tasks": config["tasks"], "encoder": config["encoder"], "architecture": config.get("architecture")}
    with without_pretrained():
        # The checkpoint's weights replace them: nothing is downloaded, and a file of that time need not be there.
        return _instantiate(types, values, path)


def _preparation(config: Mapping[str, Any], checkpoint: Mapping[str, Any], path: Path) -> Preparation | TextPreparation:
    if learnt := checkpoint.get("mtl_preparation"):
        return TextPreparation.restored(learnt)
    arguments = config.get("init_args") or {}
    if all(key in arguments for key in INPUTS):
        types = {"transforms": list[Transform] | None}
        transforms = _instantiate(types, {"transforms": arguments["eval_transforms"]}, path).transforms
        limit = arguments.get("max_pixels", MAX_PIXELS)  # runs of before there was one
        return Preparation(transforms or [], arguments["image_size"], arguments["channels"], limit)
    # A data module that fixes some of them in its code: only it knows. It brings Lightning along.
    from mtl_lightning.data.base import MultiTaskDataModule

    data = _instantiate({"data": MultiTaskDataModule}, {"data": config}, path).data
    preparation: Preparation = data.preparation()
    return preparation
