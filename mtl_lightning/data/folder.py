"""Class folders as a data module: one folder per class, one root per task."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from mtl_lightning.data.cache import ImageCache
from mtl_lightning.data.links import Links
from mtl_lightning.data.listed import ListedDataModule
from mtl_lightning.data.splits import Split
from mtl_lightning.data.table import Places, Table
from mtl_lightning.data.tree import Picture, Root, join_roots, read_root
from mtl_lightning.errors import ConfigError
from mtl_lightning.tasks.base import Task

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
"""The split of folders that have none, where the configuration gives none either."""
VAL_FRACTION = 0.15
"""The share of the training folder for validation, where neither a folder nor the configuration says."""
IMAGE, SPLIT, STRATUM = "image", "split", "class folder"


class FolderPlaces(Places):
    """The folder of each picture, in place of a file and a line.

    Args:
        name: what messages call the whole.
        folders: [N] the class folders.
    """

    def __init__(self, name: str, folders: Sequence[str]) -> None:
        super().__init__([(name, len(folders))], np.arange(len(folders)))
        self.folders = list(folders)

    def where(self, row: int) -> str:
        """The class folder of a row."""
        return self.folders[row]


class FolderDataModule(ListedDataModule):
    """Pictures sorted into class folders: ``train/cat/x.jpg``, or ``cat/x.jpg`` and a seeded split.

    One root labels one task. With several roots each picture carries the labels of the roots it lies under: mostly one; a file
    that is under several (a link, or a copy with the same name and bytes) carries several. The classes are the sorted names of
    the folders. Hidden files, and files that are no pictures by their ending, are ignored and counted in a line.

    Args:
        root: the folder of the class folders, or task → folder.
        split: ``train``, ``val`` and ``test`` are the names of the split folders, which are used where there is one for
            training; if there is none for validation, ``val_fraction`` (15 % if not given) of the training pictures are taken.
            Without split folders, pictures are drawn by ``fractions`` (70, 15 and 15 % if not given). Classes keep their shares
            in what is drawn. ``column``, ``files``, ``group`` and ``stratify`` are for manifests.
        on_error: ``raise`` stops at unreadable pictures; ``skip`` leaves out and lists those that the check before training
            finds, and makes one that fails later a black picture without labels.
        verify: how many pictures are decoded in the check, drawn at random if there are more; 0 for none.
        cache: keeps decoded pictures; None decodes them each time.
        follow_links: whether symbolic links may lead out of the roots, which may themselves be links.
        **kwargs: of :class:`~mtl_lightning.data.base.MultiTaskDataModule`.

    Raises:
        ConfigError: settings that contradict each other.
    """

    def __init__(
        self,
        root: str | dict[str, str],
        split: Split | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        verify: int = 2000,
        cache: ImageCache | None = None,
        follow_links: bool = False,
        **kwargs: Any,
    ) -> None:
        named = root if isinstance(root, dict) else {"": root}
        if not named:
            raise ConfigError("data.init_args.root is empty, expected a folder, or a folder for each task")
        folders = {task: os.path.abspath(os.path.expanduser(folder)) for task, folder in named.items()}
        common = os.path.commonpath(list(folders.values()))
        super().__init__(common, "class folders", split, on_error, verify, cache, follow_links=follow_links, **kwargs)
        self.folders = folders

    def _list(self, tasks: Mapping[str, Task]) -> Table:
        import pandas as pd

        folders = self._owners(tasks)
        roots = {task: read_root(task, folder, self.given, self._links()) for task, folder in folders.items()}
        divided = {root.split for root in roots.values()}
        if len(divided) > 1:
            some = ", ".join(root.folder for root in roots.values() if root.split)
            raise ConfigError(f"data.init_args.root: {some} has split folders and other roots have none; lay all out alike")
        pictures = join_roots(roots)
        for task, root in roots.items():
            _tell(task, root)
        parts = [next(iter(picture.splits.values())) or "" for picture in pictures]
        self.split = self._settled(divided.pop(), set(parts))
        frame = pd.DataFrame(
            {
                IMAGE: [os.path.relpath(picture.path, self.root).replace(os.sep, "/") for picture in pictures],
                SPLIT: parts,
                STRATUM: [_stratum(picture) for picture in pictures],
                **{task: [picture.classes.get(task, "") for picture in pictures] for task in roots},
            },
            dtype=str,
        )
        return Table(frame, FolderPlaces(self.root, [os.path.dirname(text) or "." for text in frame[IMAGE]]), exact=True)

    def _links(self) -> Links:
        # Not their common folder, which may be the machine's.
        return Links(list(self.folders.values()), self.follow_links)

    def _owners(self, tasks: Mapping[str, Task]) -> dict[str, str]:
        """Task → folder; roots of tasks that the run leaves out are listed too, so that its splits stay the same."""
        names = self.configured or list(tasks)
        folders = self.folders
        if "" in folders:
            if len(names) > 1:
                raise ConfigError(
                    f"data.init_args.root is one folder, but there are the tasks {', '.join(names)}; give a folder for each: "
                    "root: {" + ", ".join(f"{name}: PATH" for name in names) + "}"
                )
            folders = {names[0]: folders[""]}
        self.check_names("data.init_args.root", folders)
        for name, task in tasks.items():
            if task.kind != "class":
                raise ConfigError(
                    f"task '{name}' learns {task.kind}, but class folders give one class per picture; "
                    "use Classification, or a ManifestDataModule"
                )
            if name not in folders:
                raise ConfigError(f"data.init_args.root has no folder for task '{name}'; it has {', '.join(folders)}")
        for reserved in {IMAGE, SPLIT} & set(folders):
            raise ConfigError(f"data.init_args.root: a task of class folders cannot be called '{reserved}'; rename it")
        return folders

    def _settled(self, divided: bool, parts: set[str]) -> Split:
        split = replace(self.given, stratify=STRATUM)
        if not divided:
            if split.val_fraction is not None:
                raise ConfigError("data.init_args.split.val_fraction is for folders with splits; give val in fractions")
            split = replace(split, fractions=split.fractions or FRACTIONS)
            rank_zero_info("split at random: " + ", ".join(f"{name} {share:.0%}" for name, share in split.fractions.items()))  # type: ignore[union-attr]
            return split
        if split.fractions is not None:
            raise ConfigError(
                f"data.init_args.split.fractions is given, but the folders have splits ({split.train}, …); leave one of them "
                "out (val_fraction takes validation pictures from training)"
            )
        if split.val in parts:
            return replace(split, column=SPLIT)
        share = split.val_fraction or VAL_FRACTION
        rank_zero_info(f"there is no folder {split.val}: {share:.0%} of the pictures in {split.train} are for validation")
        return replace(split, column=SPLIT, val_fraction=share)


def _stratum(picture: Picture) -> str:
    return "/".join(f"{task}={name}" for task, name in picture.classes.items())


def _tell(task: str, root: Root) -> None:
    classes = {name for _, _, name in root.found}
    rank_zero_info(f"{root.folder}: {len(root.found)} pictures of {len(classes)} classes for task '{task}'{root.ignored}")
