"""Finding bad input before training: repeated pictures, missing files, files that do not decode or do not fit."""

import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from mtl_lightning.data.faults import Faults
from mtl_lightning.data.files import resolve
from mtl_lightning.data.labels import Labels
from mtl_lightning.data.links import Links
from mtl_lightning.data.table import Texts
from mtl_lightning.errors import DataError
from mtl_lightning.tasks.base import Task


def check_repeats(pictures: Sequence[Texts], splits: np.ndarray, names: tuple[str, ...], allowed: bool, faults: Faults) -> None:
    """Note rows that have a picture of another row.

    Args:
        pictures: [N] the pictures' paths, of one input after the other.
        splits: [N] the index of each row's split.
        names: of the splits.
        allowed: whether rows of one split may share a picture; rows of different splits never may.
        faults: takes the later row of each pair.
    """
    seen: dict[str, int] = {}
    for row, text in ((row, text) for images in pictures for row, text in enumerate(images)):
        key = text.replace("\\", "/")
        if "./" in key or "//" in key:
            key = posixpath.normpath(key)
        earlier = seen.setdefault(key, row)
        if not text or earlier == row or (allowed and splits[row] == splits[earlier]):
            continue
        split, other = names[splits[row]], names[splits[earlier]]
        if split == other:
            advice = "merge the rows, or set data.init_args.duplicates to allow"
        else:
            advice = "no picture may be in two splits"
        faults.add(row, f"{text} ({split}) is also in {faults.places.where(earlier)} ({other}); {advice}")


def check_presence(links: Links, root: str, what: str, texts: Texts, faults: Faults) -> None:
    """Note paths, where there are any, that leave the root or lead to no file; reads each folder's listing once."""
    folders: dict[str, Listing] = {}
    for row, text in enumerate(texts):
        slashes = text.replace("\\", "/")
        cut = slashes.rfind("/") + 1
        folder, name = slashes[:cut], slashes[cut:]
        if not text or (folder in folders and name in folders[folder].plain):
            continue
        try:
            path = resolve(root, text)
            if folder not in folders:
                folders[folder] = Listing(links, os.path.dirname(path), text)
            folders[folder].check(path, name, text)
        except DataError as error:
            faults.add(row, f"{what}: {error}")


def check_links(links: Links, root: str, what: str, texts: Texts, faults: Faults) -> None:
    """Note paths of files that are there, and leave the root through links."""
    for row, text in enumerate(texts):
        path = os.path.join(root, text.replace("\\", "/"))
        if text and os.path.exists(path):
            try:
                links.check(path, text)
            except DataError as error:
                faults.add(row, f"{what}: {error}")


class Listing:
    """What is in a folder, by one look into it.

    Args:
        links: which links are followed.
        folder: its path.
        text: a path in it as messages call it.

    Raises:
        DataError: it leads out of the root.
    """

    def __init__(self, links: Links, folder: str, text: str) -> None:
        self.links = links
        self.plain: set[str] = set()
        if os.path.isdir(folder):
            links.check(folder, text)
            with os.scandir(folder) as entries:
                self.plain = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}

    def check(self, path: str, name: str, text: str) -> None:
        """Raise :class:`DataError` for what is no file, or a link that leads out; asks the disk only about what is no plain file.

        Args:
            path: of a file in the folder.
            name: the last part of it.
            text: the whole as messages call it.
        """
        if name in self.plain:
            return
        if not os.path.isfile(path):
            raise DataError(
                f"{text} is no file, but a folder or a device" if os.path.exists(path) else f"there is no file {text}"
            )
        self.links.check(path, text)


def check_values(tasks: Mapping[str, Task], labels: Mapping[str, Labels], images: Texts, faults: Faults) -> None:
    """Let tasks check the labels that are in the cells; each distinct label once."""
    for name, task in tasks.items():
        values = labels[name].values
        rows = np.flatnonzero(labels[name].labelled & ~faults.bad)
        if values is None or not len(rows):
            continue
        _, first, inverse, counts = np.unique(values[rows], axis=0, return_index=True, return_inverse=True, return_counts=True)
        alike = np.split(rows[np.argsort(inverse.reshape(-1), kind="stable")], np.cumsum(counts)[:-1])
        for same, row in zip(alike, rows[first].tolist(), strict=True):
            try:
                task.check(labels[name].stored(row, None), images[row])
            except DataError as error:
                message = str(error).removeprefix(images[row]).lstrip(", ")
                faults.add_all(same, lambda _, message=message: message)  # type: ignore[misc]


def check_rows(rows: np.ndarray, check: Callable[[int], list[str]], faults: Faults) -> None:
    """Run a check that decodes a row's files, in as many threads as there are cores, at most 8.

    Args:
        rows: which rows of the manifest.
        check: gives what is wrong with one of them, by its position in ``rows``.
        faults: takes it.
    """
    Image.init()  # loads Pillow's plugins, which threads must not do at the same time
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(8, cores)) as pool:
        for row, problems in zip(rows.tolist(), pool.map(check, range(len(rows))), strict=True):
            for problem in problems:
                faults.add(row, problem)
