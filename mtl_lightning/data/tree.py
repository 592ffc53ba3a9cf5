"""Class folders on disk: which picture lies in which class of which task, and what lies there beside pictures."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mtl_lightning.data.links import Links
from mtl_lightning.data.splits import Split
from mtl_lightning.errors import ConfigError, DataError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
"""Endings of the files that are taken for pictures, in any case."""


@dataclass
class Ignored:
    """What was found and is no picture of a class.

    Attributes:
        hidden: files and folders whose name begins with a dot.
        stray: pictures that lie beside the class folders, not in one.
        others: files by their ending.
    """

    hidden: int = 0
    stray: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in self.others.most_common(4))
        parts = [f"{self.hidden} hidden"] if self.hidden else []
        parts += [f"{sum(self.others.values())} that are no pictures ({kinds})"] if self.others else []
        parts += [f"{self.stray} pictures outside of class folders"] if self.stray else []
        return "; ignored " + ", ".join(parts) if parts else ""


@dataclass
class Picture:
    """One picture with the classes that the roots give it.

    Attributes:
        path: where it lies; of several places the first one.
        splits: the name of the split folder that each root has it in; None where roots have no such folders.
        classes: task → class.
    """

    path: str
    splits: dict[str, str | None]
    classes: dict[str, str]


@dataclass
class Root:
    """One task's folder.

    Attributes:
        task: its name.
        folder: its path.
        split: whether it has folders for the splits.
        found: the pictures in order: path, split (None without split folders), class.
        empty: class folders without a picture, by split.
        ignored: what else was there.
    """

    task: str
    folder: str
    split: bool
    found: list[tuple[str, str | None, str]] = field(default_factory=list)
    empty: list[tuple[str | None, str]] = field(default_factory=list)
    ignored: Ignored = field(default_factory=Ignored)


def read_root(task: str, folder: str, split: Split, links: Links) -> Root:
    """List one root: ``train/cat/x.jpg`` where there is a folder for the training split, else ``cat/x.jpg``.

    Pictures may lie deeper within a class folder.

    Args:
        task: whose classes these are.
        folder: its path.
        split: the names of the split folders.
        links: which links are followed.

    Raises:
        DataError: there is no such folder, it holds no picture, or one class only; a link leads where it may not, or a name is
            no text.
        ConfigError: it has a training folder, and beside it folders of other names.
    """
    if not os.path.isdir(folder):
        raise DataError(f"data.init_args.root: there is no folder {folder} (task '{task}')")
    names = [split.train, split.val, split.test]
    tops = _folders(folder, links)
    root = Root(task, folder, split.train in tops)
    if root.split and (unknown := [name for name in tops if name not in names]):
        raise ConfigError(
            f"{folder} has the training folder {split.train} and beside it {', '.join(unknown)}; the splits are called "
            f"{', '.join(names)}: set data.init_args.split.val or test to the name in use, or move the folder away (where "
            f"{split.train} is a class, set split.train to what is no folder)"
        )
    if not root.split and (others := [name for name in names[1:] if name in tops]):
        raise ConfigError(
            f"{folder} has {', '.join(others)} and no {split.train}; set data.init_args.split.train to the training folder's name"
        )
    _strays(folder, root.ignored)
    for part in [name for name in names if name in tops] if root.split else [None]:
        base = folder if part is None else os.path.join(folder, part)
        if part is not None:
            _strays(base, root.ignored)
        for name in _folders(base, links):
            pictures = list(_pictures(os.path.join(base, name), root.ignored, links))
            root.found += [(picture, part, name) for picture in pictures]
            root.empty += [] if pictures else [(part, name)]
    _check(root, split)
    return root


def _check(root: Root, split: Split) -> None:
    where = f"data.init_args.root: {root.folder} (task '{root.task}')"
    layout = f"{split.train}/CLASS/picture.jpg or CLASS/picture.jpg"
    if not root.found:
        raise DataError(f"{where} holds no picture in a class folder{root.ignored}; expected {layout}")
    train = {name for _, part, name in root.found if part in (split.train, None)}
    if hollow := sorted(name for part, name in root.empty if part in (split.train, None)):
        raise DataError(f"{where}: no picture of class {', '.join(hollow)} to train on; fill the folder, or take it away")
    if new := sorted({name for _, _, name in root.found} - train):
        raise DataError(f"{where}: {', '.join(new)} is in another split, but not in {split.train}, which decides the classes")
    if len(train) == 1:
        raise DataError(f"{where} has one class only, {next(iter(train))}; expected a folder for each of two classes or more")


def _strays(folder: str, ignored: Ignored) -> None:
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            ignored.hidden += 1
        elif not os.path.isdir(entry.path):
            ending = Path(entry.name).suffix.lower()
            if ending in PICTURES:
                ignored.stray += 1
            else:
                ignored.others[ending] += 1


def class_pictures(folder: str, ignored: Ignored, links: Links) -> Iterator[tuple[str, str]]:
    """Path and class of each picture below the class folders of a folder, in order.

    Args:
        folder: whose folders are classes.
        ignored: counts what is no picture of a class.
        links: which links are followed.
    """
    _strays(folder, ignored)
    for name in _folders(folder, links):
        for path in _pictures(os.path.join(folder, name), ignored, links):
            yield path, name


def _folders(folder: str, links: Links) -> list[str]:
    """The names of the folders in a folder that are not hidden, in order."""
    # Not DirEntry.is_dir, which raises for a link to itself.
    names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".") and os.path.isdir(entry.path)]
    for name in names:
        _check_name(os.path.join(folder, name))
        links.check(os.path.join(folder, name), os.path.join(folder, name))
    return sorted(names)


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{str(os.fsencode(path))[1:]}: the name is no text in UTF-8; rename it") from error


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be listed ({error.strerror}); permit reading it, or take it away") from error


def _pictures(folder: str, ignored: Ignored, links: Links) -> Iterator[str]:
    been: set[str] = set()  # links may lead in a circle
    for place, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in been:
            folders.clear()
            continue
        been.add(real)
        ignored.hidden += sum(name.startswith(".") for name in (*folders, *files))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                links.check(os.path.join(place, name), os.path.join(place, name))
        for name in sorted(name for name in files if not name.startswith(".")):
            path, ending = os.path.join(place, name), Path(name).suffix.lower()
            if ending not in PICTURES:
                ignored.others[ending] += 1
                continue
            _check_name(path)
            if not os.path.exists(path):
                raise DataError(f"{path} is a link to nothing; mend it, or take it away")
            yield path


def join_roots(roots: Mapping[str, Root]) -> list[Picture]:
    """One entry per picture; a file that lies under several roots (a link, or a copy of the same name) gets a label from each.

    Raises:
        DataError: one root has the same file in two classes, or two roots have it in different splits.
    """
    pictures: dict[tuple[int, int], Picture] = {}
    twins = _copies(roots) if len(roots) > 1 else {}
    for task, root in roots.items():
        for path, part, name in root.found:
            key = twins.get(path) or _identity(path)
            picture = pictures.setdefault(key, Picture(path, {}, {}))
            if task in picture.classes:
                raise DataError(
                    f"task '{task}': {path} is the same file as {picture.path}; "
                    f"a picture has one class and one place ({picture.classes[task]} and {name} are given)"
                )
            picture.classes[task], picture.splits[task] = name, part
            if len(set(picture.splits.values())) > 1:
                given = ", ".join(f"{split} for '{owner}'" for owner, split in picture.splits.items())
                raise DataError(f"{path}: the same picture is in different splits ({given}); no picture may be in two")
    return list(pictures.values())


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _copies(roots: Mapping[str, Root]) -> dict[str, tuple[int, int]]:
    """The identity of the first of several files of the same name and the same bytes under different roots."""
    alike: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for task, root in roots.items():
        for path, _, _ in root.found:
            alike.setdefault((os.path.basename(path), os.path.getsize(path)), []).append((task, path))
    first: dict[str, tuple[int, int]] = {}
    for files in alike.values():
        if len({task for task, _ in files}) < 2:
            continue
        known: dict[bytes, dict[str, str]] = {}
        for task, path in files:
            owners = known.setdefault(hashlib.blake2b(Path(path).read_bytes()).digest(), {})
            # Two copies under ONE root stay two pictures: nothing is known to be wrong with them.
            first[path] = _identity(next(iter(owners.values()), path)) if task not in owners else _identity(path)
            owners.setdefault(task, path)
    return first
