"""From the columns of a manifest to each task's labels; what is wrong with a cell is collected, not raised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mtl_lightning.data.classes import about, read_classes, some, whole
from mtl_lightning.data.faults import Faults
from mtl_lightning.data.labels import BoxLabels, DepthLabels, Labels, MaskLabels, NormalsLabels, NumberLabels
from mtl_lightning.data.opening import MAX_PIXELS
from mtl_lightning.data.table import Table
from mtl_lightning.errors import ConfigError
from mtl_lightning.tasks.base import Task

YES, NO = ("1", "true", "yes"), ("0", "false", "no")
BOX = ["x0", "y0", "x1", "y1"]
NO_LABEL = 255
"""The value of unlabelled pixels where a mask's values are its class indices."""
SPAN = 1 << 24
"""Between the smallest and the largest value of a mask: a table of that many entries is made."""


@dataclass
class Column:
    """Where a task's labels are in the manifest; exactly one of ``column``, ``box`` and ``columns``.

    Attributes:
        column: one column: a class, a number, an angle, or the path of a mask, depth or normals file.
        box: four columns xmin, ymin, xmax, ymax in pixels of the picture as it is seen, for a task of four numbers.
        columns: several columns: the entries of a vector of numbers or angles, or labels of 0 and 1.
        values: masks: the class (name or index) of each value in the files; null means that they are the class indices and
            that 255 is no label.
        ignore: masks: further values in the files that mean no label.
        scale: depth: metres per unit of the files.
    """

    column: str | None = None
    box: list[str] | None = None
    columns: list[str] | None = None
    values: dict[int, str | int] | None = None
    ignore: list[int] = field(default_factory=list)
    scale: float = 1.0

    @property
    def used(self) -> list[str]:
        """The names of the columns."""
        return [self.column] if self.column is not None else list(self.box or self.columns or [])


def resolve_column(task: Task, chosen: str | list[str] | Column | None, table: Table) -> Column:
    """The configured column of a task, or that of its own name.

    Raises:
        ConfigError: there is none, or the options do not fit the kind of label.
    """
    key = f"data.init_args.columns.{task.name}"
    if chosen is None:
        if task.name not in table.columns:
            raise ConfigError(
                f"task '{task.name}' has no column: {table.places.name} has none of that name (its columns are "
                f"{', '.join(table.columns)}); name one under {key}"
            )
        chosen = task.name
    if not isinstance(chosen, Column):
        chosen = Column(column=chosen) if isinstance(chosen, str) else Column(columns=chosen)
    column = chosen
    if sum(part is not None for part in (column.column, column.box, column.columns)) != 1 or not column.used:
        raise ConfigError(f"{key}: give exactly one of column, box (four columns) and columns")
    if column.box is not None and (len(column.box) != 4 or task.kind != "numbers"):
        raise ConfigError(f"{key}.box: expected four columns xmin, ymin, xmax, ymax and a task of numbers, not {task.kind}")
    if column.columns is not None and task.kind not in ("numbers", "angle", "multilabel"):
        raise ConfigError(f"{key}: a task of kind {task.kind} is read from one column, got {column.columns}")
    if (column.values is not None or column.ignore) and task.kind != "mask":
        raise ConfigError(f"{key}: values and ignore are for masks, this task's kind is {task.kind}")
    if column.scale != 1 and task.kind != "depth":
        raise ConfigError(f"{key}.scale is for depth, this task's kind is {task.kind}")
    if not column.scale > 0:
        raise ConfigError(f"{key}.scale is {column.scale}, expected metres per unit of the file, > 0")
    table.need(column.used, key)
    return column


def read_labels(
    task: Task,
    column: Column,
    table: Table,
    root: str,
    splits: np.ndarray,
    faults: Faults,
    found: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Labels:
    """Read a task's cells of all rows; opens no file.

    Sets ``task.names`` where it is None: the classes found in training rows in order (numerically if all are numbers), the
    names of the columns, x0, y0, x1, y1 for a box, the classes in ``values`` for a mask. Whole numbers may be written with
    decimals, as pandas writes them beside empty cells: the class 1.0 is 1, unless the table is ``exact``.

    Args:
        task: decides by its kind how a cell is read.
        column: what :func:`resolve_column` gave.
        table: the manifest.
        root: the folder that the files' paths are relative to.
        splits: [N], 0 train, 1 val, 2 test, -1 none of them.
        faults: takes what is wrong; such rows are read as unlabelled.
        found: whether ``task.names``, if given, were found in these training rows before.
        max_pixels: what a file of labels may have.

    Raises:
        ConfigError: the names in the configuration do not fit the columns.
    """
    match task.kind:
        case "class":
            return read_classes(task, column.used[0], table, splits, faults, found or task.names is None)
        case "multilabel":
            _set_names(task, column.used)
            return NumberLabels(_vectors(task, column, table, faults, _flags))
        case "numbers" if column.box is not None:
            _set_names(task, BOX)
            return BoxLabels(_boxes(task, column, table, faults))
        case "numbers" | "angle":
            _set_names(task, column.used)
            return NumberLabels(_vectors(task, column, table, faults, Table.numbers))
        case "mask":
            return MaskLabels(root, table.texts(column.used[0]), _mask_classes(task, column), max_pixels)
        case "depth":
            return DepthLabels(root, table.texts(column.used[0]), column.scale, max_pixels)
        case "normals":
            return NormalsLabels(root, table.texts(column.used[0]), max_pixels)


def _flags(table: Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    codes, texts = table.codes(column)
    value = {**dict.fromkeys(YES, 1.0), **dict.fromkeys(NO, 0.0)}
    each = np.array([value.get(whole(text) or text.lower(), np.nan) for text in texts] or [np.nan])[codes]
    return each, np.isnan(each) & np.array([text != "" for text in texts] or [False])[codes]


def _vectors(
    task: Task,
    column: Column,
    table: Table,
    faults: Faults,
    read: Callable[[Table, str], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """[N, D] with NaN where an entry is missing."""
    values = np.empty((len(table), len(column.used)), dtype=np.float32)
    expected = "0, 1, true, false, yes, no or empty" if task.kind == "multilabel" else "a finite number or empty"
    for position, name in enumerate(column.used):
        numbers, wrong = read(table, name)
        values[:, position] = numbers
        faults.add_all(np.flatnonzero(wrong), about(task, name, table, expected))
    return values


def _boxes(task: Task, column: Column, table: Table, faults: Faults) -> np.ndarray:
    values = _vectors(task, column, table, faults, Table.numbers)
    given = ~np.isnan(values)
    some = given.any(1) & ~given.all(1) & ~faults.bad
    degenerate = (values[:, 2:] <= values[:, :2]).any(1)
    names = ", ".join(column.used)

    def cells(row: int) -> str:
        return f"columns {names}, task '{task.name}': the box ({', '.join(table.cell(name, row) for name in column.used)})"

    faults.add_all(np.flatnonzero(some), lambda row: f"{cells(row)} lacks a coordinate; give all four or none")
    faults.add_all(np.flatnonzero(degenerate), lambda row: f"{cells(row)} is empty, expected xmax > xmin and ymax > ymin")
    values[some | degenerate] = np.nan
    return values


def _set_names(task: Task, names: Sequence[str]) -> None:
    if task.names is None:
        task.names = list(names)
    elif len(task.names) != len(names):
        raise ConfigError(
            f"task '{task.name}' has {len(task.names)} names ({some(task.names)}), data.init_args.columns gives it "
            f"{len(names)} columns; they must agree"
        )


def _mask_classes(task: Task, column: Column) -> dict[int, int]:
    """The class index of each value in the files, -1 for no label."""
    key = f"data.init_args.columns.{task.name}"
    values = column.values
    if task.names is None and values is not None:
        indices = [value for value in values.values() if isinstance(value, int)]
        named = list(dict.fromkeys(value for value in values.values() if isinstance(value, str)))
        task.names = named if not indices else [str(index) for index in range(max(indices) + 1)]
    if not task.names:
        raise ConfigError(f"task '{task.name}' has no class names: list them in the task, or name the values in {key}.values")
    if values is None:
        classes: dict[int, int] = {NO_LABEL: -1} | {index: index for index in range(len(task.names))}
    else:
        if not values:
            raise ConfigError(f"{key}.values is empty, expected a class for each value in the files")
        classes = {}
        for value, name in values.items():
            index = task.names.index(name) if name in task.names else name
            if not isinstance(index, int) or not 0 <= index < len(task.names):
                raise ConfigError(f"{key}.values: {value} is '{name}', which is none of the classes {some(task.names)}")
            classes[value] = index
    classes |= dict.fromkeys(column.ignore, -1)
    if max(classes) - min(classes) > SPAN:
        raise ConfigError(
            f"{key}: values and ignore go from {min(classes)} to {max(classes)}, expected at most {SPAN} between them; number "
            "the classes in the files closely"
        )
    return classes
