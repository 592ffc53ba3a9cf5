"""The tiny data with some samples spoilt, and a task whose gradient breaks while its loss stays finite."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.tasks import Regression
from mtl_lightning.tasks.base import MaskedLoss, Task, Term
from tests.tiny import TinyDataModule

MARK, INFINITE = 7.0, 8.0


class SpoiltRows(LabelledDataset):
    """Args: the rows as they are, and what is wrong with some, by id."""

    def __init__(self, rows: LabelledDataset, spoil: Mapping[str, str]) -> None:
        self.rows, self.ids, self.name, self.spoil = rows, rows.ids, rows.name, spoil
        self.labelled, self.targets = rows.labelled, rows.targets  # type: ignore[method-assign]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.rows[index]
        picture = sample["image"].float() / 255
        match self.spoil.get(sample["id"]):
            case "image":
                picture[0, 0, 0] = torch.nan
            case "huge":
                picture[:] = 3e38
            case "color":
                sample["color"] = torch.tensor(torch.nan)
            case "level":
                sample["level"] = torch.tensor([torch.inf, 0.5])
            case "unlabelled":
                sample.pop("level", None)
            case "loss":
                sample["level"] = torch.tensor([3e38, 0.5])
            case "gradient":
                sample["level"] = torch.full((2,), MARK)
            case "infinite":
                sample["level"] = torch.full((2,), INFINITE)
        return sample | {"image": tv_tensors.Image(picture)}


class SpoiltDataModule(TinyDataModule):
    """Args: what is wrong with which sample; the rest as in the tiny data module."""

    def __init__(self, spoil: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spoil = spoil or {}

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        return {split: SpoiltRows(rows, self.spoil) for split, rows in super().datasets(tasks, splits).items()}


class Rooted(Regression):
    """A regression with the square root of 0 in the loss of marked samples: its slope there is infinite, and 0 times it NaN.

    Others are marked to have an infinite loss, in any precision.
    """

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        marked, endless = ((target == mark).all(1) & labelled for mark in (MARK, INFINITE))
        term = super().loss(prediction, torch.where(marked[:, None], 0.5, target), labelled)["loss"]
        more = (prediction[marked] * 0).sqrt().sum() + (prediction[endless].square() * torch.inf).sum()
        return {"loss": Term(term.total + more, term.denominator)}
