"""Which rows of a manifest train, validate and test."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtl_lightning.data.faults import Faults
from mtl_lightning.data.table import Table
from mtl_lightning.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
KEY = "data.init_args.split"


@dataclass
class Split:
    """How the rows are split: by a column, by fractions or by files; by the column ``split`` if nothing is given.

    What is drawn at random depends on ``seed``, on the rows' order and on what ``group`` and ``stratify`` hold, not on labels:
    two manifests that list the same rows with different labels hidden are split alike.

    Attributes:
        column: the column that holds the name of each row's split.
        train: the name of the training split in that column.
        val: likewise for validation.
        test: likewise for test.
        fractions: the share of the rows of each of train, val and test, adding up to 1.
        val_fraction: the share, within 0..1, of the training rows that is taken for validation where the column or the files
            have none.
        files: a manifest for each of train, val and test, relative to the root, in place of ``manifest``.
        group: a column (a patient, a scene): rows with the same text are never drawn into different splits; null takes the
            pictures themselves.
        stratify: a column (a class): each of its texts keeps its share in every split as well as that goes.
        seed: of what is drawn.
    """

    column: str | None = None
    train: str = "train"
    val: str = "val"
    test: str = "test"
    fractions: dict[str, float] | None = None
    val_fraction: float | None = None
    files: dict[str, str] | None = None
    group: str | None = None
    stratify: str | None = None
    seed: int = 0

    def manifests(self, manifest: str | None) -> list[str]:
        """The files that the rows are in: one, or one a split; raises :class:`ConfigError` unless either of them is given."""
        if (manifest is None) == (self.files is None):
            raise ConfigError("data.init_args: give either manifest or split.files")
        return [manifest] if manifest is not None else list((self.files or {}).values())

    def check(self) -> None:
        """Raise :class:`ConfigError` for settings that contradict each other.

        Not done when built, since the command line would wrap the message in its own.
        """
        given = [key for key in ("column", "fractions", "files") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ConfigError(f"{KEY}: {' and '.join(given)} are given, expected one of them")
        for key in ("fractions", "files"):
            chosen = getattr(self, key)
            if chosen is not None and (set(chosen) - set(SPLITS) or "train" not in chosen):
                raise ConfigError(f"{KEY}.{key} has the keys {list(chosen)}, expected train and, if wanted, val and test")
        if self.fractions is not None:
            if any(not 0 <= share <= 1 for share in self.fractions.values()) or abs(sum(self.fractions.values()) - 1) > 1e-6:
                raise ConfigError(f"{KEY}.fractions is {self.fractions}, expected shares within 0..1 that add up to 1")
            if self.val_fraction is not None:
                raise ConfigError(f"{KEY}: give val in fractions or val_fraction, not both")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ConfigError(f"{KEY}.val_fraction is {self.val_fraction}, expected between 0 and 1")
        if self.seed < 0:
            raise ConfigError(f"{KEY}.seed is {self.seed}, expected 0 or more")
        if len({self.train, self.val, self.test}) < 3:
            raise ConfigError(f"{KEY}: train, val, test are called {self.train}, {self.val}, {self.test}; give each its own name")


def assign(split: Split, table: Table, image: str, faults: Faults | None = None) -> np.ndarray:
    """The split of every row.

    Args:
        split: the settings.
        table: the manifest; of several files, one for each entry of ``split.files`` in that order.
        image: the picture's column.
        faults: takes the rows whose split has none of the three names; None raises instead.

    Returns:
        [N], 0 train, 1 val, 2 test, -1 none of them.

    Raises:
        ConfigError: the settings do not fit the manifest.
        DataError: a row's split has none of the three names, or no row trains.
    """
    for key, column in (("group", split.group), ("stratify", split.stratify)):
        table.need([] if column is None else [column], f"{KEY}.{key}")
    if split.files is not None:
        codes: np.ndarray = np.array([SPLITS.index(name) for name in split.files])[table.places.source]
    elif split.fractions is not None:
        shares = {SPLITS.index(name): share for name, share in split.fractions.items() if share > 0}
        codes = _draw(split, table, image, np.arange(len(table)), shares)
    else:
        codes = _read(split, table, faults)
    if split.val_fraction is not None:
        if (codes == 1).any():
            raise ConfigError(f"{KEY}.val_fraction is given, but {table.places.name} has validation rows; leave one of them out")
        rows = np.flatnonzero(codes == 0)
        codes[rows] = _draw(split, table, image, rows, {0: 1 - split.val_fraction, 1: split.val_fraction})
    asked = {"train", *(split.files or {}), *(name for name, share in (split.fractions or {}).items() if share > 0)}
    asked |= {"val"} if split.val_fraction is not None else set()
    for name in sorted(asked):
        if not (codes == SPLITS.index(name)).any():
            key = KEY if split.fractions is None else f"{KEY}.fractions"
            if name == "val" and split.val_fraction is not None:
                key = f"{KEY}.val_fraction"
            raise DataError(f"{table.places.name}: no row is in the {name} split ({len(table)} rows in all); look at {key}")
    return codes


def _read(split: Split, table: Table, collected: Faults | None) -> np.ndarray:
    column = split.column
    if column is None:
        if "split" not in table.columns:
            raise ConfigError(f"{table.places.name} has no column 'split': set {KEY}.column, fractions or files")
        column = "split"
    table.need([column], f"{KEY}.column")
    names = [split.train, split.val, split.test]
    codes, texts = table.codes(column)
    index = np.array([names.index(text) if text in names else -1 for text in texts] or [-1])
    assigned: np.ndarray = index[codes]
    wrong = np.flatnonzero(assigned < 0)
    if len(wrong):
        faults = Faults(table.places, len(table)) if collected is None else collected
        faults.add_all(wrong, lambda row: f"column '{column}': '{table.cell(column, row)}' is none of {', '.join(names)}")
    if len(wrong) and collected is None:
        raise DataError(f"{faults.report()}\nSet {KEY}.train, val and test to the names in use, or mend the rows")
    return assigned


def _draw(split: Split, table: Table, image: str, rows: np.ndarray, shares: Mapping[int, float]) -> np.ndarray:
    """The splits of some rows, drawn group by group."""
    groups = table.codes(split.group or image)[0][rows]
    strata = table.codes(split.stratify)[0][rows] if split.stratify else np.zeros(len(rows), dtype=np.int64)
    # Numbered by first appearance among these rows, so that the other rows do not matter.
    _, first, groups = np.unique(groups, return_index=True, return_inverse=True)
    groups = np.argsort(np.argsort(first))[groups]
    order = np.random.default_rng(split.seed).permutation(len(first))
    wanted = np.array(list(shares.values()))
    if len(first) == len(rows):
        chosen = _deal(order[np.argsort(strata[np.argsort(groups)][order], kind="stable")], wanted)
    else:
        chosen = _balance(order, groups, strata, wanted)
    result: np.ndarray = np.array(list(shares))[chosen[groups]]
    return result


def _deal(order: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Deal single rows out in order, each to the split that is furthest behind its share: exact in every stretch of them."""
    wanted, dealt = shares.tolist(), [0] * len(shares)
    chosen = np.empty(len(order), dtype=np.int64)
    splits = range(len(wanted))
    for turn, row in enumerate(order.tolist(), start=1):
        taker = max(splits, key=lambda split: turn * wanted[split] - dealt[split])
        dealt[taker] += 1
        chosen[row] = taker
    return chosen


def _balance(order: np.ndarray, groups: np.ndarray, strata: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Give whole groups out, the large ones first, each where the counts per stratum then are nearest to what is wanted."""
    counts = np.zeros((len(order), int(strata.max()) + 1))
    np.add.at(counts, (groups, strata), 1)
    open_ = shares[:, None] * counts.sum(0)
    # A rare stratum counts as much as a common one.
    importance = 1 / np.maximum(counts.sum(0), 1)
    chosen = np.empty(len(order), dtype=np.int64)
    for group in order[np.argsort(-counts.sum(1)[order], kind="stable")].tolist():
        present = np.flatnonzero(counts[group])
        size = counts[group, present]
        # The change of the squared distance to what is wanted, were this split to take the group.
        cost = (importance[present] * (size**2 - 2 * size * open_[:, present])).sum(1)
        taker = int(cost.argmin())
        open_[taker, present] -= size
        chosen[group] = taker
    return chosen
