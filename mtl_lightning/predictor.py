"""A trained model for use in Python: any picture or text in, plain typed results out. No Lightning."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtl_lightning.data.prepare import Preparation, Prepared
from mtl_lightning.data.text.prepare import PreparedText, TextPreparation
from mtl_lightning.errors import ConfigError
from mtl_lightning.inputs import IMAGE
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.results import Result

Network = Callable[..., Mapping[str, Tensor]]


def forward_each(
    network: Network,
    pictures: Sequence[Prepared | PreparedText],
    device: torch.device | str,
    reads: Mapping[str, str] | None = None,
) -> list[dict[str, Tensor]]:
    """Raw predictions of pictures or texts of any sizes, each as if alone: those of one size go through the network together.

    Args:
        network: from named inputs (and the tasks that are wanted) to raw predictions by task.
        pictures: prepared.
        device: of the network.
        reads: task → input, where pictures have several.

    Returns:
        For each picture the raw predictions of its tasks, without the batch dimension; of several inputs those of the tasks
        whose input it has.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[tuple[int, Prepared | PreparedText]]] = {}
    for position, picture in enumerate(pictures):
        parts: Mapping[str, Prepared | PreparedText] = picture.inputs or {picture.input: picture}
        for name, part in parts.items():
            groups.setdefault((name, tuple(part.tensor.shape)), []).append((position, part))
    rows: list[dict[str, Tensor]] = [{} for _ in pictures]
    for (name, _), alike in groups.items():
        wanted = {"tasks": [task for task, read in reads.items() if read == name]} if reads else {}
        stacked = torch.stack([part.tensor for _, part in alike]).to(device)
        for task, prediction in network({name: stacked}, **wanted).items():
            for (position, _), row in zip(alike, prediction, strict=True):
                rows[position][task] = row.float()
    return rows


def to_results(
    tasks: Mapping[str, Task], raw: Mapping[str, Tensor], picture: Prepared | PreparedText, reads: Mapping[str, str]
) -> dict[str, Result]:
    """What the raw predictions of one picture mean, dense ones at the size of the stored picture.

    Args:
        tasks: of the run.
        raw: by task; tasks that are not there have no result.
        picture: of which.
        reads: task → input, where the picture has several.
    """
    results = {}
    for name, task in tasks.items():
        seen = picture.seen_by(name, reads)
        if name not in raw or seen is None:
            continue
        row, frame = raw[name], seen.frame
        value = frame.back(row, task.decode, task.target.fill) if task.target.dense else task.decode(row[None])[0]
        results[name] = task.result(value, task.interpret(row[None])[0], frame)
    return results


class Predictor(nn.Module):
    """A multi-task model with its tasks and the way pictures or texts are prepared for it.

    Args:
        model: trained.
        tasks: those to predict, by name, each with what it learnt from the training labels.
        preparation: the evaluation transforms, image size and channels; or the tokeniser.
    """

    def __init__(
        self, model: MultiTaskModel, tasks: Mapping[str, Task], preparation: Preparation | TextPreparation | None = None
    ) -> None:
        super().__init__()
        self.model = model
        for name, task in tasks.items():
            task.name = name
        self.tasks = nn.ModuleDict(dict(tasks))
        self.preparation: Preparation | TextPreparation = preparation or Preparation()
        self.model.heads = nn.ModuleDict({name: model.heads[name] for name in tasks})

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    def forward(self, given: Tensor, padding: Tensor | None = None) -> dict[str, Tensor]:
        """Raw predictions: logits, standardised numbers; a task's ``interpret`` makes probabilities and real units of them.

        Args:
            given: pictures [B, C, H, W] in 0..1, not normalised, or token ids int64 [B, L], padded with 0; on the model's
                device.
            padding: bool [B, H, W], True where a picture was filled up.

        Returns:
            Per task [B, channels], or [B, channels, H, W] from dense heads.
        """
        predictions: dict[str, Tensor] = self.model({self.model.only_input(): given}, padding)
        return predictions

    def predict(self, images: Any, batch_size: int = 32) -> Any:
        """Decoded predictions with probabilities, the same as ``python -m mtl_lightning predict`` writes.

        Args:
            images: a path; a PIL image; a numpy array [H, W] or [H, W, C] or a tensor [C, H, W] (uint8, or floating-point
                numbers in 0..1); of a model of several inputs a dict of these, input → picture, which may lack some; or a
                list of any of these, of any sizes; or a tensor [B, C, H, W]. To a model of texts: a text, or a list of texts.
            batch_size: pictures or texts that go through the network at once.

        Returns:
            For one picture or text a dict from task to its :class:`~mtl_lightning.tasks.results.Result`, without the tasks
            whose input is lacking; for a list or a tensor of several a list of these. Masks, depth and normals have the size of
            the picture that was given, boxes are in its pixels.

        Raises:
            DataError: a picture cannot be read, or is none.
        """
        many = isinstance(images, list | tuple) or (isinstance(images, Tensor) and images.ndim == 4)
        given = list(images) if many else [images]
        results = []
        for start in range(0, len(given), batch_size):
            pictures = self._take(given[start : start + batch_size], start)
            raw = self._raw(pictures)
            results += [
                to_results(self._tasks, row, picture, self.model.inputs) for row, picture in zip(raw, pictures, strict=True)
            ]
        return results if many else results[0]

    def draw(self, images: Sequence[Any], path: str | os.PathLike[str]) -> None:
        """Write a picture (PNG) of pictures beside their predictions.

        Args:
            images: as of :meth:`predict`; a few.
            path: of the PNG.
        """
        from mtl_lightning.analysis.sheet import Cell, contact_sheet

        pictures = self._take(images, 0)
        rows = [Cell.of(picture, row, self.model.inputs) for row, picture in zip(self._raw(pictures), pictures, strict=True)]
        contact_sheet(rows, self._tasks, Path(path))

    @property
    def _tasks(self) -> dict[str, Task]:
        return cast(dict[str, Task], dict(self.tasks.items()))

    def _take(self, items: Sequence[Any], start: int) -> list[Prepared | PreparedText]:
        known = sorted({self.model.inputs[task] for task in self.tasks}) if self.model.inputs else [IMAGE]
        return [self.preparation.take(item, number, known) for number, item in enumerate(items, start)]

    @torch.no_grad()
    def _raw(self, pictures: Sequence[Prepared | PreparedText]) -> list[dict[str, Tensor]]:
        training = self.training
        self.eval()
        try:
            return forward_each(self.model, pictures, self.device, self.model.inputs)
        finally:
            self.train(training)


def choose(asked: Sequence[str] | None, tasks: Mapping[str, Task], what: str) -> list[str]:
    """The asked tasks in the order of the model's.

    Args:
        asked: names; None means all.
        tasks: there are.
        what: what they are asked for, for the message.

    Raises:
        ConfigError: one is not there.
    """
    if asked is None:
        return list(tasks)
    unknown = [name for name in asked if name not in tasks]
    if unknown or not asked:
        wrong = f"there is no task {', '.join(unknown)}" if unknown else "no task is named"
        raise ConfigError(f"{what}: {wrong}; the model has {', '.join(tasks)}")
    return [name for name in tasks if name in asked]
