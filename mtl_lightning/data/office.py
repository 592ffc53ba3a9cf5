"""One domain a task: Office-31, Office-Home, and whatever is laid out like them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mtl_lightning.data.cache import ImageCache
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.folder import IMAGE, SPLIT, FolderPlaces
from mtl_lightning.data.listed import ListedDataModule
from mtl_lightning.data.splits import SPLITS, Split, assign
from mtl_lightning.data.table import Places, Table, join_tables
from mtl_lightning.data.tree import Ignored, class_pictures
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.tasks.base import Task

LISTS = "{domain}_{split}.txt"
"""Where split lists are looked for if the configuration does not say."""
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}
"""The split where there are no lists, the one of the published tables."""
VAL_FRACTION = 0.2
"""The share of the training list for validation where there is no list for it."""
SOURCE = (
    "Office-31 is on the page of its authors (Saenko, Kulis, Fritz, Darrell, ECCV 2010) and Office-Home on that of its own "
    "(Venkateswara et al., CVPR 2017, hemanthdv.org); unpack it so that ROOT/DOMAIN/images/CLASS or ROOT/DOMAIN/CLASS holds the "
    "pictures"
)


class OfficeDataModule(ListedDataModule):
    """One task a domain, each with pictures of its own: ``ROOT/amazon/images/bike/x.jpg``, or ``ROOT/Art/Bike/x.jpg``.

    Every row is one picture with the label of one task, so that there is one input and the encoder runs once, on the whole
    batch: no row is run in vain, and a task's loss sees the rows of its domain alone. Under ``model.only`` the other domains are
    not read. Classes are the names of the folders, sorted.

    Split lists have a line ``path label`` for each picture, with the path relative to ``root`` and a number for the class, as
    LibMTL gives them. The class is the picture's folder; a number that stands for two folders of a domain is an error.

    Args:
        root: the folder of the domains.
        domains: task → folder of its domain; a task that is not named here has a domain of its own name.
        lists: where the lists are, below ``root`` or absolute, with ``{domain}`` for the task's name and ``{split}`` for the
            split's; None takes ``{domain}_{split}.txt`` where that is there, and otherwise draws the splits.
        split: ``train``, ``val`` and ``test`` are the splits' names in ``lists``; where there is no list for validation,
            ``val_fraction`` (20 % if not given) of the training pictures are taken. Without lists, each domain is split by
            ``fractions`` (60, 20 and 20 % if not given), classes keep their shares, and ``seed`` decides.
        balance_domains: pictures of every domain come equally often in an epoch, which keeps its length: those of small domains
            several times, of large ones not in every epoch. Near to a batch of each domain a step.
        on_error: ``raise`` stops at unreadable pictures; ``skip`` leaves out and lists those that the check before training
            finds, and makes one that fails later a black picture without labels.
        verify: how many pictures are decoded in the check, drawn at random if there are more; 0 for none.
        cache: keeps decoded pictures; None decodes them each time.
        follow_links: whether symbolic links may lead out of ``root``, which may itself be a link.
        **kwargs: of :class:`~mtl_lightning.data.base.MultiTaskDataModule`.

    Raises:
        ConfigError: settings that contradict each other.
    """

    def __init__(
        self,
        root: str,
        domains: dict[str, str] | None = None,
        lists: str | None = None,
        split: Split | None = None,
        balance_domains: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        verify: int = 2000,
        cache: ImageCache | None = None,
        follow_links: bool = False,
        **kwargs: Any,
    ) -> None:
        if lists is not None and not ("{domain}" in lists and "{split}" in lists):
            raise ConfigError(
                f"data.init_args.lists is {lists}, expected a path with {{domain}} and {{split}} in it, e.g. {LISTS}"
            )
        super().__init__(root, "domains", split, on_error, verify, cache, follow_links=follow_links, **kwargs)
        self.domains = dict(domains or {})
        self.lists = lists
        self.balance_domains = balance_domains
        if balance_domains and self.balance is not None:
            raise ConfigError(
                "data.init_args: balance and balance_domains both decide how often rows come; leave one of them out"
            )

    def _classes(self, dataset: LabelledDataset) -> Tensor | None:
        if not self.balance_domains:
            return super()._classes(dataset)
        domains = torch.full((len(dataset),), -1, dtype=torch.long)
        for number, task in enumerate(self.tasks or {}):
            domains[torch.from_numpy(np.flatnonzero(dataset.labelled(task)))] = number
        return domains

    def _list(self, tasks: Mapping[str, Task]) -> Table:
        if not os.path.isdir(self.root):
            raise DataError(f"data.init_args.root: there is no folder {self.root}. {SOURCE}")
        self.check_names("data.init_args.domains", self.domains)
        for name, task in tasks.items():
            if task.kind != "class":
                raise ConfigError(
                    f"task '{name}' learns {task.kind}, but a domain gives one class per picture; use Classification"
                )
            if name in (IMAGE, SPLIT):
                raise ConfigError(
                    f"model.tasks: a task of a domain cannot be called '{name}'; rename it, and name its folder in domains"
                )
        listed = {name: self._found(name) for name in tasks}
        if any(listed.values()) or self.lists is not None:
            tables = [self._by_lists(name, found) for name, found in listed.items()]
        else:
            fractions = self.given.fractions or FRACTIONS
            rank_zero_info(
                "no split lists; split at random: " + ", ".join(f"{part} {share:.0%}" for part, share in fractions.items())
            )
            tables = [self._drawn_splits(name, fractions) for name in tasks]
        self.split = Split(column=SPLIT, seed=self.given.seed)
        table = join_tables(tables)
        return Table(table.frame, table.places, exact=True)

    def _found(self, task: str) -> dict[str, str]:
        """The lists of a task that are there, by split."""
        names = {part: (self.lists or LISTS).format(domain=task, split=getattr(self.given, part)) for part in SPLITS}
        return {part: name for part, name in names.items() if os.path.isfile(os.path.join(self.root, name))}

    def _by_lists(self, task: str, found: Mapping[str, str]) -> Table:
        if missing := [part for part in ("train", "test") if part not in found]:
            name = (self.lists or LISTS).format(domain=task, split=getattr(self.given, missing[0]))
            raise DataError(
                f"task '{task}': there is no split list {os.path.join(self.root, name)}; set data.init_args.lists, or take all "
                "lists away to draw the splits"
            )
        if self.given.fractions is not None:
            raise ConfigError("data.init_args.split.fractions is given, but there are split lists; leave one of them out")
        first: dict[str, tuple[str, str]] = {}
        tables = []
        for part, name in found.items():
            rows = [_line(self.root, name, number, line, first) for number, line in _lines(os.path.join(self.root, name))]
            frame = _frame(task, [path for _, path, _ in rows], [label for *_, label in rows], [part] * len(rows))
            tables.append(
                Table(frame, Places([(name, len(rows))], np.array([number for number, *_ in rows], dtype=np.int64)), exact=True)
            )
        table = join_tables(tables)
        if "val" not in found:
            share = self.given.val_fraction or VAL_FRACTION
            rank_zero_info(f"task '{task}' has no list for validation: {share:.0%} of its training list are taken")
            table = _split(table, Split(column=SPLIT, val_fraction=share, stratify=task, seed=self.given.seed))
        return table

    def _drawn_splits(self, task: str, fractions: dict[str, float]) -> Table:
        folder = self.domains.get(task, task)
        base = os.path.join(self.root, folder, "images")
        base = base if os.path.isdir(base) else os.path.join(self.root, folder)
        if not os.path.isdir(base):
            there = ", ".join(sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())) or "none"
            raise DataError(
                f"task '{task}': there is no folder {base}; look at data.init_args.root, or name its domain in "
                f"data.init_args.domains.{task} (there are {there}). {SOURCE}"
            )
        ignored = Ignored()
        found = list(class_pictures(base, ignored, self._links()))
        if not found:
            raise DataError(f"task '{task}': {base} holds no picture in a class folder{ignored}. {SOURCE}")
        rank_zero_info(
            f"{base}: {len(found)} pictures of {len({label for _, label in found})} classes for task '{task}'{ignored}"
        )
        paths = [os.path.relpath(path, self.root).replace(os.sep, "/") for path, _ in found]
        frame = _frame(task, paths, [label for _, label in found], ["train"] * len(found))
        table = Table(frame, FolderPlaces(base, [os.path.dirname(path) for path in paths]), exact=True)
        return _split(table, replace(self.given, fractions=fractions, stratify=task))


def _frame(task: str, paths: Sequence[str], labels: Sequence[str], parts: Sequence[str]) -> Any:
    import pandas as pd

    return pd.DataFrame({IMAGE: paths, SPLIT: parts, task: labels}, dtype=str)


def _split(table: Table, split: Split) -> Table:
    """The table with its splits drawn; of each domain alone, so that they do not depend on which others there are."""
    codes = assign(split, table, IMAGE)
    return Table(table.frame.assign(**{SPLIT: [SPLITS[code] for code in codes]}), table.places, table.exact)


def _lines(path: str) -> list[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8") as file:
            return [(number, line.strip()) for number, line in enumerate(file, start=1) if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error


def _line(root: str, name: str, number: int, line: str, first: dict[str, tuple[str, str]]) -> tuple[int, str, str]:
    """A line's number, path and class; ``first`` remembers which folder each label stands for."""
    path, _, label = line.rpartition(" ")
    folder = os.path.basename(os.path.dirname(path.strip()))
    where = f"{name}, row {number}"
    if not folder:
        raise DataError(f"{where}: '{line}' is no path with a class folder and a label, e.g. amazon/images/bike/frame_0001.jpg 0")
    known, place = first.setdefault(label, (folder, where))
    if known != folder:
        raise DataError(
            f"{where}: the label {label} stands for the folder {folder}, but for {known} in {place}; mend one of them"
        )
    return number, path.strip(), folder
