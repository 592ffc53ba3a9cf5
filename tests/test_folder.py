import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtl_lightning.data.folder import FolderDataModule
from mtl_lightning.data.splits import Split
from mtl_lightning.errors import ConfigError, DataError, MTLError
from mtl_lightning.main import main
from mtl_lightning.tasks import Classification, Depth
from tests.data.folders import CLASSES, write_folders, write_picture

ROOT = Path(__file__).parents[1]


def module(root: Any, tasks: tuple[str, ...] = ("label",), **options: Any) -> FolderDataModule:
    data = FolderDataModule(root if isinstance(root, dict) else str(root), num_workers=0, seed=0, **options)
    data.tasks = {name: Classification() for name in tasks}
    for name, task in data.tasks.items():
        task.name = name
    return data


def labels(data: FolderDataModule, split: str, task: str = "label") -> dict[str, str]:
    dataset, names = data.splits[split], data.tasks[task].names  # type: ignore[index]
    rows = np.flatnonzero(dataset.labelled(task)).tolist()
    return {dataset.ids[row]: names[int(dataset[row][task])] for row in rows}  # type: ignore[index]


def test_split_folders_classes_and_pictures_of_every_mode(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folders(tmp_path, 48, ("train", "val", "test"))
    data = module(tmp_path)
    with caplog.at_level("INFO"):
        data.setup("fit")
        data.setup("test")
    assert data.tasks["label"].names == list(CLASSES)  # type: ignore[index]
    found = {split: labels(data, split) for split in ("train", "val", "test")}
    assert sum(map(len, found.values())) == 48
    for split, rows in found.items():
        assert all(name.startswith(f"{split}/{label}/") for name, label in rows.items()) and len(rows) >= 12
    line = next(record.message for record in caplog.records if "ignored" in record.message)
    assert "48 pictures of 3 classes for task 'label'; ignored 2 hidden, 2 that are no pictures (1 .txt, 1 .db)" in line
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs["image"].shape[1] == 3 and batch.padding is not None


def test_a_seeded_split_keeps_the_shares_of_the_classes(tmp_path: Path) -> None:
    write_folders(tmp_path, 120)
    data, again, other = module(tmp_path), module(tmp_path), module(tmp_path, split=Split(seed=1))
    for part in (data, again, other):
        part.setup("fit")
        part.setup("test")
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 84, "val": 18, "test": 18}
    for split, rows in {"train": 28, "val": 6, "test": 6}.items():
        assert set(np.bincount([CLASSES.index(name) for name in labels(data, split).values()])) == {rows}
        assert list(data.splits[split].ids) == list(again.splits[split].ids) != list(other.splits[split].ids)


def test_validation_is_taken_from_training_where_it_has_no_folder(tmp_path: Path) -> None:
    write_folders(tmp_path, 90, ("train", "test"))
    data = module(tmp_path, split=Split(val_fraction=0.2))
    data.setup("fit")
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 36, "val": 9}
    default = module(tmp_path)
    default.setup("fit")
    assert len(default.splits["val"]) == 7


def test_several_roots_one_label_each_and_more_for_the_same_file(tmp_path: Path) -> None:
    insects = write_folders(tmp_path / "insects", 24, ("train", "val"))
    write_folders(tmp_path / "light", 24, ("train", "val"), ("dark", "bright"), first=100)
    link = tmp_path / "light" / "train" / "dark" / "linked.jpg"
    os.symlink(insects[0], link)
    copy = tmp_path / "light" / "train" / "dark" / "other" / insects[6].name
    copy.parent.mkdir()
    shutil.copy(insects[6], copy)
    data = module({"insect": str(tmp_path / "insects"), "light": str(tmp_path / "light")}, ("insect", "light"))
    data.setup("fit")
    assert data.tasks["insect"].names == list(CLASSES) and data.tasks["light"].names == ["bright", "dark"]  # type: ignore[index]
    train = data.splits["train"]
    both = train.labelled("insect") & train.labelled("light")
    assert (train.labelled("insect") | train.labelled("light")).all()
    shared = {train.ids[row] for row in np.flatnonzero(both)}
    assert shared == {insects[number].relative_to(tmp_path).as_posix() for number in (0, 6)}
    assert labels(data, "train", "light")[insects[0].relative_to(tmp_path).as_posix()] == "dark"
    assert len(train) == 12 + 12 and len(data.splits["val"]) == 12 + 12
    batch = next(iter(data.train_dataloader()))
    assert set(batch.labelled) == {"insect", "light"}


def test_only_does_not_change_the_split(tmp_path: Path) -> None:
    write_folders(tmp_path / "a", 30)
    write_folders(tmp_path / "b", 30, classes=("x", "y"), first=100)
    roots = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}
    both, one = module(roots, ("a", "b")), module(roots, ("a",))
    one.configured = both.configured = ["a", "b"]
    both.setup("fit")
    one.setup("fit")
    assert list(both.splits["train"].ids) == list(one.splits["train"].ids)


def test_found_classes_are_told_and_named_as_the_folders_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path, 48, ("train", "val"), ("1", "1.0"))
    data = module(tmp_path)
    data.setup("fit")
    assert data.tasks["label"].names == ["1", "1.0"]  # type: ignore[index]
    assert "label: 2 classes found in the training rows: 1 (12), 1.0 (12)" in capsys.readouterr().out


def broken(root: Path, what: str) -> Any:
    match what:
        case "missing":
            return root / "nowhere"
        case "empty":
            (root / "cat").mkdir()
        case "one class":
            write_picture(root / "cat" / "0.jpg", 0)
        case "hollow":
            write_folders(root)
            (root / "dog").mkdir()
        case "new class":
            write_folders(root, 24, ("train", "val"))
            write_picture(root / "val" / "dog" / "0.jpg", 0)
        case "strange split":
            write_folders(root, 24, ("train", "valid"))
        case "no train":
            write_folders(root, 24, ("val", "test"))
        case "two classes":
            paths = write_folders(root)
            os.link(paths[0], root / "bee" / "again.jpg")
        case "unreadable":
            write_folders(root, 30)
            (root / "ant" / "bad.jpg").write_bytes(b"no picture")
    return root


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"there is no folder .*nowhere \(task 'label'\)"),
        ("empty", r"holds no picture in a class folder; expected train/CLASS/picture.jpg or CLASS/picture.jpg"),
        ("one class", r"has one class only, cat"),
        ("hollow", r"no picture of class dog to train on"),
        ("new class", r"dog is in another split, but not in train"),
        ("strange split", r"beside it valid; the splits are called train, val, test: set data.init_args.split.val"),
        ("no train", r"has val, test and no train; set data.init_args.split.train"),
        ("two classes", r"again.jpg is the same file as .*ant/0.jpg.*\(ant and bee are given\)"),
        ("unreadable", r"(?s)1 bad row:.*ant/bad.jpg cannot be read.*on_error to skip"),
    ],
)
def test_faults_of_folders(tmp_path: Path, what: str, message: str) -> None:
    with pytest.raises(MTLError, match=message):
        module(broken(tmp_path, what)).setup("fit")


def test_faults_of_the_configuration(tmp_path: Path) -> None:
    write_folders(tmp_path / "a")
    write_folders(tmp_path / "b", 24, ("train", "val"))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"split\.column is for manifests"):
        module(a, split=Split(column="x"))
    with pytest.raises(ConfigError, match="one folder, but there are the tasks one, two"):
        module(a, ("one", "two")).setup("fit")
    with pytest.raises(ConfigError, match="no folder for task 'two'"):
        module({"one": a}, ("one", "two")).setup("fit")
    with pytest.raises(ConfigError, match="lay all out alike"):
        module({"one": a, "two": b}, ("one", "two")).setup("fit")
    with pytest.raises(ConfigError, match="fractions is given, but the folders have splits"):
        module(b, split=Split(fractions={"train": 0.5, "val": 0.5})).setup("fit")
    unknown = module({"one": a, "typo": b}, ("one",))
    unknown.configured = ["one", "two"]
    with pytest.raises(ConfigError, match=r"data.init_args.root.typo: there is no such task"):
        unknown.setup("fit")
    dense = module(a)
    dense.tasks = {"depth": Depth()}
    with pytest.raises(ConfigError, match="learns depth, but class folders give one class"):
        dense.setup("fit")


def test_a_picture_in_two_splits_is_refused(tmp_path: Path) -> None:
    paths = write_folders(tmp_path / "a", 24, ("train", "val"))
    write_folders(tmp_path / "b", 24, ("train", "val"), ("x", "y"), first=100)
    os.symlink(paths[0], tmp_path / "b" / "val" / "x" / "leak.jpg")
    with pytest.raises(DataError, match=r"different splits \(train for 'one', val for 'two'\)"):
        module({"one": str(tmp_path / "a"), "two": str(tmp_path / "b")}, ("one", "two")).setup("fit")


def test_a_run_skips_and_lists_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    write_folders(pictures, 60)
    (pictures / "ant" / "bad.jpg").write_bytes(b"no picture")
    # A link in a circle must not hang.
    os.symlink(pictures / "ant", pictures / "ant" / "circle")
    common = ["--config", str(ROOT / "configs/folder.yaml"), "--runs", str(tmp_path / "runs"), "--data.init_args.num_workers=0",
              f"--data.init_args.root={pictures}", "--trainer.accelerator=cpu"]  # fmt: skip
    main(["fit", *common, "--trainer.max_epochs=2", "--data.init_args.batch_size=8", "--data.init_args.image_size=32"])
    run = tmp_path / "runs" / "folder"
    listed = "".join(path.read_text() for path in run.glob("left_out_*.txt"))
    assert "1 bad row" in listed and "ant/bad.jpg" in listed
    assert json.loads((run / "summary.json").read_text())["val"]["tasks"]["label"]["labelled_rows"] == 9
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 1
    with pytest.raises(SystemExit):
        main(["fit", *common, "--data.init_args.on_error=raise"])
    assert "ant/bad.jpg cannot be read" in capsys.readouterr().err


def test_check_lists_every_unreadable_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "pictures"
    write_folders(pictures, 45)
    for name in ("ant", "cow"):
        (pictures / name / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        main(["check", "--config", str(ROOT / "configs/folder.yaml"), "--runs", str(tmp_path / "runs"),
              f"--data.init_args.root={pictures}", "--data.init_args.image_size=32", "--data.init_args.num_workers=0",
              "--data.init_args.on_error=raise", "--trainer.accelerator=cpu"])  # fmt: skip
    said = "".join(path.read_text() for path in (tmp_path / "runs").rglob("faults.txt"))
    assert "ant/bad.jpg" in said and "cow/bad.jpg" in said
