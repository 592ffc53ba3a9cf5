"""CLINC150: requests to an assistant, with their intent, its domain, and whether it is one of these at all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.labels import ClassLabels
from mtl_lightning.data.table import Texts
from mtl_lightning.data.text.dataset import TextDataset
from mtl_lightning.data.text.module import TextDataModule
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.tasks.base import Task

SPLITS = ("train", "val", "test")
OUT = "oos"
"""The name of the intent of rows out of scope, and the beginning of the names of their lists."""
SCOPES = ["in_scope", "out_of_scope"]
ORIGIN = (
    'it is in the data set CLINC150 of S. Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope '
    'Prediction", EMNLP 2019 (CC BY 3.0): search for CLINC150 in the UCI Machine Learning Repository, or take the folder '
    "data of the GitHub repository clinc/oos-eval"
)


class Clinc150DataModule(TextDataModule):
    """CLINC150 (Larson et al., EMNLP 2019) as it is published: ``data_full.json`` (or another of its files) and ``domains.json``.

    Quantities, all of kind class: ``domain`` (10), ``intent`` (150, 15 in each domain) and ``out_of_scope`` (``in_scope`` or
    ``out_of_scope``). A request out of scope has neither domain nor intent: these are missing labels, and no classes of their
    own (in the paper ``oos`` is a 151st intent). All rows of a split carry the label ``out_of_scope``.

    Args:
        root: the folder with the files.
        file: of the requests: ``data_full.json`` (15,100 training rows), ``data_small.json`` (7,600) or others in their layout.
        targets: task → quantity; a task that is not named here takes the quantity of its own name.
        hidden: share of the training rows without the label, 0..1, one for all tasks or task → share (others: 0). Drawn for
            each task by itself: hiding more of one changes no other.
        hidden_seed: of what is hidden, >= 0. Runs that differ in ``seed`` alone share their labels.
        **kwargs: of :class:`~mtl_lightning.data.text.module.TextDataModule`.

    Raises:
        ConfigError: a number out of its range.
    """

    def __init__(
        self,
        root: str = "data/clinc150",
        file: str = "data_full.json",
        targets: dict[str, str] | None = None,
        hidden: float | dict[str, float] = 0.0,
        hidden_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.file = Path(root).expanduser(), file
        self.wanted, self.hidden, self.hidden_seed = dict(targets or {}), hidden, hidden_seed
        if hidden_seed < 0:
            raise ConfigError(f"data.init_args.hidden_seed is {hidden_seed}, expected 0 or more")
        named = {f"hidden.{task}": share for task, share in hidden.items()} if isinstance(hidden, dict) else {"hidden": hidden}
        for key, share in named.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"data.init_args.{key} is {share}, expected a share from 0 to 1")

    def read(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        """Read both files, name the classes and hide labels.

        Raises:
            DataError: a file is missing or broken.
            ConfigError: a task that fits no quantity.
        """
        self.check_names("data.init_args.targets", self.wanted)
        if isinstance(self.hidden, dict):
            self.check_names("data.init_args.hidden", self.hidden)
        domains = _read_domains(self.root / "domains.json")
        requests = _read_requests(self.root / self.file, {intent for intents in domains.values() for intent in intents})
        names = {
            "domain": sorted(domains),
            "intent": sorted(intent for intents in domains.values() for intent in intents),
            "out_of_scope": SCOPES,
        }
        of = {intent: domain for domain, intents in domains.items() for intent in intents}
        for name, task in tasks.items():
            _match(name, task, self.wanted.get(name, name), names)
        found: dict[str, LabelledDataset] = {}
        for split in splits:
            intents = [intent for _, intent in requests[split]]
            labels: dict[str, list[str | None]] = {
                "intent": [None if intent == OUT else intent for intent in intents],
                "domain": [of.get(intent) for intent in intents],
                "out_of_scope": [SCOPES[intent == OUT] for intent in intents],
            }
            chosen = {task: self._labels(task, labels[quantity], names[quantity], split)
                      for task, quantity in ((task, self.wanted.get(task, task)) for task in tasks)}  # fmt: skip
            ids, texts = [f"{split}/{row:05d}" for row in range(len(intents))], Texts(text for text, _ in requests[split])
            found[split] = TextDataset(split, np.arange(len(ids)), ids, texts, chosen)
        return found

    def _labels(self, task: str, labels: Sequence[str | None], names: Sequence[str], split: str) -> ClassLabels:
        index = {name: position for position, name in enumerate(names)}
        classes = np.array([-1 if label is None else index[label] for label in labels], dtype=np.int64)
        share = self.hidden.get(task, 0.0) if isinstance(self.hidden, dict) else self.hidden
        if split == "train" and share:
            random = np.random.default_rng([self.hidden_seed, crc32(task.encode())])
            classes[random.random(len(classes)) < share] = -1
        return ClassLabels(classes)


def _match(name: str, task: Task, quantity: str, names: Mapping[str, list[str]]) -> None:
    key = f"data.init_args.targets.{name}"
    if quantity not in names:
        raise ConfigError(f"{key}: CLINC150 has no quantity '{quantity}', only {', '.join(names)}; set it to one of them")
    if task.kind != "class":
        raise ConfigError(f"{key}: '{quantity}' is a class, but {type(task).__name__} learns {task.kind}; take Classification")
    if task.names is None:
        task.names = list(names[quantity])
    elif list(task.names) != names[quantity]:
        raise ConfigError(
            f"task '{name}' has other classes than '{quantity}' of CLINC150 ({len(names[quantity])} in alphabetical order, "
            f"{', '.join(names[quantity][:3])}…); leave model.tasks.{name}.init_args.classes out"
        )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); {ORIGIN}, and set data.init_args.root to its folder (and "
            "data.init_args.file to a name in it)"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is no proper JSON ({error}); it may be cut off: {ORIGIN}") from error


def _read_domains(path: Path) -> dict[str, list[str]]:
    domains = _json(path)
    if not isinstance(domains, dict) or not domains or not all(_strings(intents) for intents in domains.values()):
        raise DataError(f"{path} does not hold a list of intents for each domain; {ORIGIN}")
    every = [intent for intents in domains.values() for intent in intents]
    twice = sorted({intent for intent in every if every.count(intent) > 1})
    if twice:
        raise DataError(f"{path}: more than one domain has the intent {', '.join(twice[:5])}; {ORIGIN}")
    return domains


def _strings(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)


def _read_requests(path: Path, intents: set[str]) -> dict[str, list[tuple[str, str]]]:
    """Text and intent of the requests of each split, those in scope first."""
    stored = _json(path)
    lists = [prefix + split for split in SPLITS for prefix in ("", f"{OUT}_")]
    missing = [name for name in lists if not isinstance(stored, dict) or not isinstance(stored.get(name), list)]
    if missing:
        raise DataError(f"{path} has no lists {', '.join(missing)}, expected {', '.join(lists)}; {ORIGIN}")
    found: dict[str, list[tuple[str, str]]] = {}
    for name in lists:
        known = {OUT} if name.startswith(OUT) else intents
        rows = found.setdefault(name.removeprefix(f"{OUT}_"), [])
        for number, row in enumerate(stored[name]):
            if not _strings(row) or len(row) != 2 or not row[0].strip():
                raise DataError(f"{path}, {name}, entry {number}: {str(row)[:80]} is no pair of a text and an intent; {ORIGIN}")
            if row[1] not in known:
                expected = f"'{OUT}'" if known == {OUT} else "one of those in domains.json"
                raise DataError(f"{path}, {name}, entry {number}: the intent '{row[1]}' is not {expected}; {ORIGIN}")
            rows.append((row[0], row[1]))
    return found
