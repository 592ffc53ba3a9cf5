"""A task a domain: folders, split lists, and domains that come equally often."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl_lightning.data import OfficeDataModule
from mtl_lightning.data.splits import Split
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.tasks import Classification, Regression, Task
from tests.data.office import CLASSES, write_office

DOMAINS = ("amazon", "dslr", "webcam")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("office")
    write_office(root / "drawn")
    write_office(root / "listed", lists=True)
    write_office(root / "home", images=False, domains={"Art": 15, "Real World": 15})
    return root


def data(root: Path, tasks: tuple[str, ...] = DOMAINS, configured: tuple[str, ...] = (), **options: Any) -> OfficeDataModule:
    found = OfficeDataModule(str(root), image_size=16, num_workers=0, **options)
    found.tasks = {name: Classification() for name in tasks}
    for name, task in found.tasks.items():
        task.name = name
    found.configured = list(configured or tasks)
    return found


def rows(module: OfficeDataModule, stage: str = "fit") -> dict[str, list[str]]:
    module.setup(stage)
    return {split: list(dataset.ids) for split, dataset in module.splits.items()}


def test_lists_decide_the_splits(place: Path) -> None:
    module = data(place / "listed")
    found = rows(module) | rows(module, "test")
    for split, ids in found.items():
        lines = [
            line.split()[0] for name in DOMAINS for line in (place / "listed" / f"{name}_{split}.txt").read_text().splitlines()
        ]
        assert sorted(ids) == sorted(lines)
    train, task = module.splits["train"], (module.tasks or {})["dslr"]
    assert task.names == sorted(CLASSES)
    sample = train[int(train.labelled("dslr").nonzero()[0][0])]
    assert sample["id"].split("/")[0] == "dslr" and task.names[int(sample["dslr"])] == sample["id"].split("/")[2]
    assert "amazon" not in sample and "webcam" not in sample


def test_without_lists_each_domain_is_split_by_shares_whatever_others_there_are(place: Path) -> None:
    module = data(place / "drawn")
    found = rows(module) | rows(module, "test")
    assert {split: len(ids) for split, ids in found.items()} == {"train": 36, "val": 12, "test": 12}
    for name in ("amazon", "webcam"):
        labels = [
            int(label)
            for label in module.splits["train"].targets(name, module.splits["train"].labelled(name).nonzero()[0].tolist())
        ]
        assert len({labels.count(index) for index in range(3)}) == 1, "classes keep their shares"
    alone = rows(data(place / "drawn", ("dslr",), DOMAINS))
    assert alone["train"] == [path for path in found["train"] if path.startswith("dslr")], "and no row of another domain"
    assert rows(data(place / "drawn", split=Split(seed=1)))["train"] != found["train"]


def test_domains_in_folders_of_other_names(place: Path) -> None:
    found = rows(data(place / "home", ("Art", "Real_World"), domains={"Real_World": "Real World"}))
    assert {path.split("/")[0] for path in found["train"]} == {"Art", "Real World"}


def test_every_batch_has_one_picture_and_one_label_a_row(place: Path) -> None:
    module = data(place / "listed", batch_size=13)
    module.setup("fit")
    for batch in module.train_dataloader():
        assert list(batch.inputs) == ["image"] and not batch.given
        assert (torch.stack(list(batch.labelled.values())).sum(0) == 1).all()


@pytest.mark.parametrize("balanced", [False, True])
def test_small_domains_come_as_often_if_wanted(place: Path, balanced: bool) -> None:
    module = data(place / "listed", balance_domains=balanced, batch_size=36)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    counts = [int(batch.labelled[name].sum()) for name in DOMAINS]
    assert counts == ([12, 12, 12] if balanced else [18, 9, 9])


def test_a_missing_list_for_validation_is_drawn(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "listed", tmp_path / "office")
    for name in DOMAINS:
        (tmp_path / "office" / f"{name}_val.txt").unlink()
    found = rows(data(tmp_path / "office", split=Split(val_fraction=1 / 3)))
    assert len(found["train"]) == 24 and len(found["val"]) == 12


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (lambda root: shutil.rmtree(root), {}, DataError, "there is no folder ROOT. Office-31 is on the page of its authors"),
        (lambda root: shutil.rmtree(root / "dslr"), {"lists": None}, DataError, "there is no file dslr/images/"),
        (
            lambda root: (root / "dslr_train.txt").unlink(),
            {},
            DataError,
            "task 'dslr': there is no split list ROOT/dslr_train.txt; set data.init_args.lists",
        ),
        (
            lambda root: (root / "dslr_val.txt").write_text("dslr/images/bike/frame_0001.jpg 0\n"),
            {},
            DataError,
            "dslr_val.txt, row 1: the label 0 stands for the folder bike, but for back_pack in dslr_train.txt, row 1",
        ),
        (
            lambda root: (root / "dslr_val.txt").write_text("nothing\n"),
            {},
            DataError,
            "dslr_val.txt, row 1: 'nothing' is no path",
        ),
        (lambda root: (root / "dslr_val.txt").write_bytes(b"caf\xe9/a.jpg 0\n"), {}, DataError, "dslr_val.txt is not UTF-8"),
        (
            lambda root: (root / "dslr_val.txt").write_text((root / "dslr_train.txt").read_text()),
            {},
            DataError,
            "is also in dslr_train.txt, row 1 (train); no picture may be in two splits",
        ),
        (lambda root: None, {"lists": "{domain}.txt"}, ConfigError, "data.init_args.lists is {domain}.txt, expected a path"),
        (
            lambda root: None,
            {"split": Split(fractions={"train": 1.0})},
            ConfigError,
            "fractions is given, but there are split lists",
        ),
        (lambda root: None, {"split": Split(column="split")}, ConfigError, "data.init_args.split.column is for manifests"),
        (
            lambda root: None,
            {"domains": {"caltech": "caltech"}},
            ConfigError,
            "data.init_args.domains.caltech: there is no such task",
        ),
        (lambda root: None, {"balance_domains": True, "balance": "dslr"}, ConfigError, "leave one of them out"),
    ],
)
def test_what_is_wrong_is_told(place: Path, tmp_path: Path, change: Any, options: Any, error: Any, words: str) -> None:
    root = tmp_path / "office"
    shutil.copytree(place / "listed", root)
    change(root)
    with pytest.raises(error) as told:
        data(root, **options).setup("fit")
    assert words.replace("ROOT", str(root)) in str(told.value)


def test_a_missing_domain_and_other_kinds_of_tasks(place: Path) -> None:
    with pytest.raises(
        DataError, match=r"task 'caltech': there is no folder .*data.init_args.domains.caltech \(there are amazon"
    ):
        data(place / "drawn", ("amazon", "caltech")).setup("fit")
    module = data(place / "drawn", ("amazon",))
    wrong: Task = Regression()
    wrong.name = "amazon"
    module.tasks = {"amazon": wrong}
    with pytest.raises(ConfigError, match="task 'amazon' learns numbers, but a domain gives one class per picture"):
        module.setup("fit")
