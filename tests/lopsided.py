"""Data of which some processes never see a label of one task."""

from collections.abc import Mapping, Sequence

import numpy as np

from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.loader import EpochSampler
from mtl_lightning.tasks.base import Task
from tests.tiny import TinyDataModule


class LopsidedDataModule(TinyDataModule):
    """In the first epoch only rows with an even place in the order have a ``level``: odd ranks never see one."""

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        found = super().datasets(tasks, splits)
        if "train" in found:
            train = found["train"]
            order = [pick.row for pick in EpochSampler(train, shuffle=True, seed=self.seed or 0)]
            train.present["level"] = train.present["level"] & np.isin(np.arange(len(order)), order[::2])
        return found
