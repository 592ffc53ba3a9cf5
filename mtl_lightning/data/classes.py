"""A column of classes: which names there are, and which class each row has."""

import re
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from mtl_lightning.data.faults import Faults
from mtl_lightning.data.labels import ClassLabels
from mtl_lightning.data.splits import SPLITS
from mtl_lightning.data.table import Table
from mtl_lightning.tasks.base import Task


def about(task: Task, column: str, table: Table, expected: str) -> Callable[[int], str]:
    """Words for a cell that is not what was expected, by its row."""
    return lambda row: f"column '{column}', task '{task.name}': '{table.cell(column, row)}' is not {expected}"


def some(names: Sequence[str]) -> str:
    """The first names, and how many there are."""
    return ", ".join(names[:20]) + (f" … ({len(names)} in all)" if len(names) > 20 else "")


def _number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text, re.ASCII) is not None


def whole(text: str) -> str | None:
    """The whole number that a text is, without decimals; None if it is none."""
    match = re.fullmatch(r"(-?\d+)(\.0+)?", text, re.ASCII)
    return match.group(1) if match is not None else None


def read_classes(task: Task, column: str, table: Table, splits: np.ndarray, faults: Faults, found: bool) -> ClassLabels:
    """Read a column of class names or, where the task names its classes, of their indices.

    Args:
        task: its ``names`` are set to those of the training rows where they are None.
        column: its name.
        table: the manifest.
        splits: [N], 0 train, 1 val, 2 test, -1 none of them.
        faults: takes the rows whose class is none of the names.
        found: whether the names are those of the training rows.
    """
    codes, texts = table.codes(column)
    plain = texts if table.exact else [whole(text) or text for text in texts]
    if task.names is None:
        task.names = _found([code for code in np.unique(codes[splits == 0]).tolist() if texts[code]], texts, plain)
    names = task.names
    known = {name: index for index, name in enumerate(names)}
    if not all(map(_number, names)):
        known = {str(index): index for index in range(len(names))} | known
    if not table.exact:
        known = {whole(name) or name: index for index, name in enumerate(names)} | known
    index = np.array([known.get(text, known.get(other, -1)) for text, other in zip(texts, plain, strict=True)] or [-1])
    labels = index[codes]
    wrong = np.array([text != "" for text in texts] or [False])[codes] & (labels < 0)
    if found:
        faults.add_all(np.flatnonzero(wrong), _unseen(task, column, table, codes, splits))
    else:
        expected = f"one of the classes {some(names)}; no label is an empty cell"
        faults.add_all(np.flatnonzero(wrong), about(task, column, table, expected))
    return ClassLabels(labels)


def _found(codes: Sequence[int], texts: Sequence[str], plain: Sequence[str]) -> list[str]:
    """The classes among the cells of the training rows, in order."""
    # Whole numbers lose their decimals together or not at all: beside 0.5, 1.0 is no index.
    source = plain if all(whole(texts[code]) is not None for code in codes) else texts
    found = {source[code] for code in codes}
    # Otherwise the class "10" would come before the class "2".
    return sorted(found, key=lambda text: (float(text), text)) if all(map(_number, found)) else sorted(found)


def _unseen(task: Task, column: str, table: Table, codes: np.ndarray, splits: np.ndarray) -> Callable[[int], str]:
    """Words for a class that only rows outside of the training split have."""

    @cache
    def where(code: int) -> str:
        others = np.unique(splits[codes == code]).tolist()
        return " and ".join(SPLITS[split] for split in others if split >= 0) or "rows of no split"

    def words(row: int) -> str:
        return (
            f"column '{column}', task '{task.name}': the class '{table.cell(column, row)}' occurs in {where(codes[row])} but in "
            f"no training row, whose classes are {some(task.names or [])}; unless it is a typo, name all classes in "
            f"model.tasks.{task.name}.init_args.classes, or split the rows otherwise (data.init_args.split)"
        )

    return words
