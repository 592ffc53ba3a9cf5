import builtins
import codecs
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torchvision import tv_tensors

from mtl_lightning.data import manifest as manifest_module
from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.data.columns import Column
from mtl_lightning.data.files import image_size, read_depth, read_image, read_mask, read_normals
from mtl_lightning.data.found import class_line, suspicion
from mtl_lightning.data.manifest import ManifestDataModule
from mtl_lightning.data.splits import Split, assign
from mtl_lightning.data.table import Places, Table, Texts, read_table
from mtl_lightning.data.tv import ClassMap
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.classification import Classification
from mtl_lightning.tasks.depth import Depth
from mtl_lightning.tasks.multilabel import MultiLabel
from mtl_lightning.tasks.normals import SurfaceNormals
from mtl_lightning.tasks.ordinal import Ordinal
from mtl_lightning.tasks.regression import Regression
from mtl_lightning.tasks.segmentation import SemanticSegmentation
from tests.data.manifest import COLUMNS, HEADER, write_manifest, write_rows

PARSED = {key: Column(**value) if isinstance(value, dict) else value for key, value in COLUMNS.items()}


def all_tasks() -> dict[str, Task]:
    return {
        "breed": Classification(),
        "species": Classification(),
        "head": Regression(),
        "age": Regression(),
        "attributes": MultiLabel(),
        "mask": SemanticSegmentation(["background", "pet"]),
        "depth": Depth(),
        "normals": SurfaceNormals(),
    }


def module(root: Path, manifest: str | None = "all.csv", **options: Any) -> ManifestDataModule:
    options = {"columns": PARSED, "split": Split(val_fraction=0.25), "num_workers": 0, "batch_size": 4} | options
    return ManifestDataModule(str(root), manifest, **options)


@pytest.fixture
def pets(tmp_path: Path) -> tuple[Path, list[dict[str, str]]]:
    return tmp_path, write_manifest(tmp_path)


def failure(data: ManifestDataModule, *names: str, **tasks: Task) -> str:
    tasks = {name: task for name, task in all_tasks().items() if name in names} | tasks
    with pytest.raises(DataError) as error:
        data.datasets(tasks, ["train", "val"])
    return str(error.value)


def cells(root: Path, **columns: list[str]) -> ManifestDataModule:
    """A manifest of 2 x 2 pictures; all rows train."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for number, row in enumerate(rows):
        row |= {"image": f"{number}.png", "split": row.get("split", "train")}
        Image.new("RGB", (2, 2)).save(root / row["image"])
    write_rows(root / "cells.csv", rows)
    return module(root, "cells.csv", split=Split(), columns={})


# --- from file to batch -----------------------------------------------------------------------------------------------------


def test_every_kind_of_label_arrives(pets):
    root, rows = pets
    data = module(root, split=Split())
    data.tasks = all_tasks()
    data.setup("fit")
    train = data.splits["train"]
    assert list(train.ids) == [row["image"] for row in rows if row["split"] == "train"]
    assert data.tasks["breed"].names == ["abyssinian", "beagle", "bengal"]
    assert data.tasks["head"].names == ["x0", "y0", "x1", "y1"]
    assert data.tasks["attributes"].names == ["smiling", "hat"]
    for index in (0, 4):
        row, sample = rows[index], train[index]
        truth = np.array(Image.open(root / row["mask"]))
        height, width = truth.shape
        assert row["image"] == sample["id"] and sample["size"] == (height, width)
        assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, height, width)
        assert torch.equal(sample["image"], torch.from_numpy(np.array(Image.open(root / row["image"]))).permute(2, 0, 1))
        # Values 1, 2, 3 are pet, background, nothing; the classes are background, pet.
        expected = torch.from_numpy(np.array([0, 2, 1, 0])[truth])
        assert isinstance(sample["mask"], ClassMap) and torch.equal(sample["mask"].long(), expected)
        metres = np.where(truth == 3, 0, truth + index * 0.001)
        torch.testing.assert_close(sample["depth"][0].as_subclass(torch.Tensor), torch.tensor(metres, dtype=torch.float32))
        normals = sample["normals"].as_subclass(torch.Tensor).permute(1, 2, 0)
        assert (normals[truth == 3] == 0).all()
        torch.testing.assert_close(normals[truth == 1][0], torch.tensor([0.6, 0.0, 0.8]), atol=0.01, rtol=0)
        torch.testing.assert_close(normals[truth == 2].norm(dim=1), torch.ones(int((truth == 2).sum())))
        box = [float(row[name]) for name in HEADER[5:9]]
        assert sample["head"].tolist() == [box] and sample["head"].canvas_size == (height, width)
        assert sample["breed"].item() == sorted({row["breed"] for row in rows}).index(row["breed"])
        assert sample["attributes"].tolist() == [index % 2, index % 3 // 2]
        assert sample["age"].item() == pytest.approx(float(row["age"]))
        target = {task: next(iter(train.targets(task, [index]))) for task in data.tasks}
        torch.testing.assert_close(target["head"], torch.tensor(box) / torch.tensor([width, height, width, height]))
        assert target["mask"].dtype == torch.long and torch.equal(target["mask"], expected - 1)
        assert target["depth"].shape == (1, height, width) and target["normals"].shape == (3, height, width)
    batch = next(iter(data.train_dataloader()))
    assert all(labelled.all() for labelled in batch.labelled.values())


def test_empty_cells_are_missing_labels(pets):
    root, _ = pets
    data = module(root, "partial.csv", split=Split())
    tasks = all_tasks()
    train = data.datasets(tasks, ["train"])["train"]
    frame = pd.read_csv(root / "partial.csv").query("split == 'train'")
    for task, columns in {"breed": ["breed"], "head": HEADER[5:9], "attributes": HEADER[9:11], "depth": ["depth"]}.items():
        expected = frame[columns].notna().any(axis=1).to_numpy()
        assert 0 < expected.sum() < len(expected) and train.labelled(task).tolist() == expected.tolist()
        assert [task in train[index] for index in range(len(train))] == expected.tolist()


def test_entries_of_a_vector_may_be_missing_alone(tmp_path):
    data = cells(tmp_path, a=["1", "", " "], b=["", "-2.5e1", ""], yes=["TRUE", "", "no"], no=["0", "", "1"])
    data.columns = {"numbers": ["a", "b"], "flags": ["yes", "no"]}
    train = data.datasets({"numbers": Regression(), "flags": MultiLabel()}, ["train"])["train"]
    assert train.labelled("numbers").tolist() == [True, True, False]
    torch.testing.assert_close(train[0]["numbers"], torch.tensor([1.0, torch.nan]), equal_nan=True)
    torch.testing.assert_close(train[1]["numbers"], torch.tensor([torch.nan, -25.0]), equal_nan=True)
    assert train[0]["flags"].tolist() == [1, 0] and "flags" not in train[1] and train[2]["flags"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "texts", "expected_names", "expected"),
    [
        (None, ["10", "2", "", "10"], ["2", "10"], [1, 0, -1, 1]),
        (None, ["b", "a", "NA", "null"], ["NA", "a", "b", "null"], [2, 1, 0, 3]),
        (["cat", "dog"], ["1", "cat", "0", "dog"], ["cat", "dog"], [1, 0, 0, 1]),
        (["7", "1", "0"], ["1", "7", "0", ""], ["7", "1", "0"], [1, 0, 2, -1]),
    ],
)
def test_classes(tmp_path, names, texts, expected_names, expected):
    data, task = cells(tmp_path, label=texts), Classification(names)
    train = data.datasets({"label": task}, ["train"])["train"]
    assert task.names == expected_names
    assert [int(train[row].get("label", -1)) for row in range(4)] == expected


def test_numbers_that_are_class_names_are_no_indices(tmp_path):
    assert "'2' is not one of the classes 7, 1, 0" in failure(
        cells(tmp_path, label=["1", "2"]), label=Classification(["7", "1", "0"])
    )


def test_class_names_come_from_training_rows_alone(tmp_path):
    data = cells(tmp_path, label=["a", "b", "c"], split=["train", "train", "test"])
    message = failure(data, label=Classification())
    assert (
        "row 4: column 'label', task 'label': the class 'c' occurs in test but in no training row, whose classes are a, b"
        in message
    )
    assert "model.tasks.label.init_args.classes" in message and "data.init_args.split" in message
    named = Classification(["a", "b", "c"])
    assert len(data.datasets({"label": named}, ["train"])["train"]) == 2
    data.tasks = {"label": named}
    data.setup("fit")  # learns although no training row has the class
    both = cells(tmp_path, label=["a", "c", "c"], split=["train", "val", "test"])
    assert "row 4: column 'label', task 'label': the class 'c' occurs in val and test but" in failure(
        both, label=Classification()
    )


def test_a_class_that_no_training_row_has_is_told_for_later_splits_too(tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(manifest_module, "rank_zero_info", lines.append)
    data = cells(tmp_path, label=["a", "b", "c"], split=["train", "train", "test"])
    data.on_error, tasks = "skip", {"label": Classification()}
    data.datasets(tasks, ["train"])
    data.datasets(tasks, ["test"])
    assert len(lines) == 1 and "the class 'c' occurs in test but in no training row" in lines[0]


def as_pandas(root: Path, values: dict[str, list[Any]], suffix: str) -> ManifestDataModule:
    """The same rows as :func:`cells`, written by pandas, for which a whole number beside an empty cell is a float."""
    count = len(next(iter(values.values())))
    cells(root, label=[""] * count)
    rows = {"image": [f"{number}.png" for number in range(count)], "split": ["train"] * count}
    frame = pd.DataFrame(rows | values)
    if suffix == "csv":
        frame.to_csv(root / "pandas.csv", index=False)
        assert ".0" in (root / "pandas.csv").read_text()
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(root / "pandas.parquet")
    return module(root, f"pandas.{suffix}", split=Split(), columns={})


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_whole_numbers_that_pandas_wrote_as_floats(tmp_path, suffix):
    data = as_pandas(
        tmp_path,
        {
            "found": [10, 2, None, 0],
            "given": [1, None, 0, 1],
            "index": [1, None, 0, 1],
            "grade": [3, 1, None, 10],
            "yes": [1, None, 0, 1],
            "half": [1.0, 0.5, None, 1.0],
        },
        suffix,
    )
    data.columns = {"flags": ["yes"]}
    tasks: dict[str, Task] = {
        "found": Classification(),
        "given": Classification(["0", "1"]),
        "index": Classification(["cat", "dog"]),
        "grade": Ordinal(),
        "flags": MultiLabel(),
        "half": Classification(),
    }
    train = data.datasets(tasks, ["train"])["train"]
    assert tasks["found"].names == ["0", "2", "10"] and tasks["grade"].names == ["1", "3", "10"]
    assert tasks["half"].names == ["0.5", "1.0"], "not all are whole numbers"
    for task, expected in {
        "found": [2, 1, -1, 0],
        "given": [1, -1, 0, 1],
        "index": [1, -1, 0, 1],
        "grade": [1, 0, -1, 2],
        "flags": [1, -1, 0, 1],
        "half": [1, 0, -1, 1],
    }.items():
        assert [int(train[row].get(task, torch.tensor(-1))) for row in range(4)] == expected, task


def test_one_file_with_decimals_and_one_without_have_the_same_classes(tmp_path):
    data = cells(tmp_path, label=["1.0", "", "2.0", "2", "1"], split=["train"] * 3 + ["val"] * 2)
    task = Classification()
    splits = data.datasets({"label": task}, ["train", "val"])
    assert task.names == ["1", "2"] and [int(splits["val"][row]["label"]) for row in range(2)] == [1, 0]
    spelled = Classification(["2.0", "1.0"])
    assert int(data.datasets({"label": spelled}, ["val"])["val"][0]["label"]) == 0


def test_classes_that_were_found_are_shown_and_typos_suspected(tmp_path, capsys):
    data = cells(tmp_path, bag=["bag"] * 12 + ["cat[s]"] * 3 + ["bra"], kind=["x"] * 15 + ["y"])
    data.tasks = {"bag": Classification(), "kind": Classification(["x", "y"])}
    for name, task in data.tasks.items():
        task.name = name
    data.setup("fit")
    said = capsys.readouterr().out
    assert "bag: 3 classes found in the training rows: bag (12), bra (1), cat[s] (3)\n" in said
    assert "WARNING bag: class 'bra' has a single training row: a typo?" in said
    assert "model.tasks.bag.init_args.classes" in said and "kind: 2" not in said and said.count("WARNING") == 1


@pytest.mark.parametrize(("counts", "suspected"), [([9, 1], ""), ([10, 1], "'1'"), ([1, 40, 0], "'0', '2'"), ([50, 2], "")])
def test_a_single_row_is_suspicious_where_others_have_many(counts, suspected):
    sentence = suspicion("t", [str(index) for index in range(len(counts))], np.array(counts))
    assert suspected in (sentence or "") if suspected else sentence is None


def test_at_most_ten_classes_are_listed():
    line = class_line("t", [str(index) for index in range(40)], np.full(40, 3))
    assert line.startswith("t: 40 classes") and line.endswith("8 (3), 9 (3), …")


@pytest.mark.parametrize(("stage", "shown"), [("fit", ["train", "val"]), ("validate", ["val"]), ("test", ["test"])])
def test_the_table_shows_the_splits_that_matter(tmp_path, capsys, stage, shown):
    data = cells(tmp_path, label=["a", "b", "a", "b"], split=["train", "train", "val", "test"])
    data.tasks = {"label": Classification()}
    data.setup(stage)
    said = capsys.readouterr().out
    header = next(line for line in said.splitlines() if "task" in line)
    assert [split for split in ("train", "val", "test") if split in header] == shown
    assert ("found in the training rows" in said) == (stage == "fit")
    assert data.tasks["label"].names == ["a", "b"]


# --- bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x", "nan", "inf", "1,5", "1e60"])
def test_numbers_must_be_finite(tmp_path, text):
    message = failure(cells(tmp_path, age=["1", text]), age=Regression())
    assert f"cells.csv, row 3: column 'age', task 'age': '{text}' is not a finite number" in message


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ("0 0 1", "lacks a coordinate"),
        ("1 0 1 2", "expected xmax > xmin"),
        ("0 2 1 1", "ymax > ymin"),
        ("0 0 1 3.5", "leaves its picture, which is 2 wide and 2 high"),
        ("0 0 3.5 1", "leaves its picture"),
        ("-1.5 0 1 1", "leaves its picture"),
    ],
)
def test_bad_boxes(tmp_path, box, problem):
    corners = [*box.split(), ""][:4]
    data = cells(tmp_path, **{name: [good, bad] for name, good, bad in zip("abcd", "0022", corners, strict=True)})
    data.columns = {"head": Column(box=list("abcd"))}
    message = failure(data, head=Regression())
    assert "1 bad row:" in message and "cells.csv, row 3" in message and problem in message


def test_a_box_may_stick_out_by_a_pixel(tmp_path):
    data = cells(tmp_path, a=["-1"], b=["0"], c=["3"], d=["2"])
    data.columns = {"head": Column(box=list("abcd"))}
    train = data.datasets({"head": Regression()}, ["train"])["train"]
    assert next(iter(train.targets("head", [0]))).tolist() == [0, 0, 1, 1]


def test_all_faults_are_told_at_once(pets):
    root, rows = pets
    rows[0]["age"], rows[2]["breed"], rows[2]["hat"] = "old", "cow", "2"
    rows[3]["depth"], rows[4]["image"], rows[6]["image"] = "depth/none.npy", "../images/a.jpg", ""
    (root / rows[5]["image"]).write_bytes((root / rows[5]["image"]).read_bytes()[:300])
    Image.new("L", (3, 4), 1).save(root / rows[1]["mask"])
    write_rows(root / "all.csv", rows, HEADER)
    tasks = all_tasks() | {"breed": Classification(["abyssinian", "beagle", "bengal"])}
    message = failure(module(root, split=Split()), **tasks)
    assert message.startswith("7 bad rows:")
    size = Image.open(root / rows[1]["image"]).size
    for line in (
        "all.csv, row 2: column 'age', task 'age': 'old'",
        f"all.csv, row 3: {rows[1]['image']}, task 'mask': {rows[1]['mask']} is 3 wide and 4 high, its picture "
        f"{size[0]} wide and {size[1]} high",
        "all.csv, row 4: column 'breed', task 'breed': 'cow' is not one of the classes abyssinian, beagle, bengal",
        "all.csv, row 4: column 'hat', task 'attributes': '2' is not 0, 1, true",
        "all.csv, row 5: task 'depth': there is no file depth/none.npy",
        "all.csv, row 6: column 'image': ../images/a.jpg is not below the data module's root",
        f"all.csv, row 7: {rows[5]['image']} cannot be read",
        "all.csv, row 8: column 'image': there is no picture",
    ):
        assert line in message
    # What no task of the run reads is not checked.
    assert failure(module(root, split=Split()), "species").startswith("3 bad rows:")


def test_at_most_twenty_rows_are_listed(tmp_path):
    message = failure(cells(tmp_path, age=["x"] * 30 + ["1"]), age=Regression())
    assert message.count("cells.csv, row") == 20 and "30 bad rows" in message and "and 10 more" in message


def test_mask_values_without_a_class(pets):
    root, rows = pets
    message = failure(module(root, columns=PARSED | {"mask": Column("mask", values={1: "pet", 2: "background"})}), "mask")
    assert f"{rows[0]['mask']} has the values 3 (" in message and "expected only 1, 2" in message
    for number in range(9):
        mask = np.zeros((30, 30), dtype=np.int64)
        mask[0, :2] = 1, 255
        np.save(root / f"{number}.npy", mask)
        Image.new("L", (30, 30)).save(root / f"{number}.png")
    write_rows(root / "m.csv", [{"image": f"{n}.png", "split": "train", "m": f"{n}.npy"} for n in range(9)])
    data = module(root, "m.csv", columns={})
    sample = data.datasets({"m": SemanticSegmentation(["a", "b"])}, ["train"])["train"][0]
    assert sample["m"][0, :3].tolist() == [2, 0, 1]
    np.save(root / "8.npy", np.full((30, 30), 2**40 + 1))
    assert str(2**40 + 1) in failure(data, m=SemanticSegmentation(["a", "b"]))


def test_tasks_check_what_is_in_the_cells(tmp_path):
    class Positive(Regression):
        def check(self, target: torch.Tensor, where: str) -> None:
            if target[0] <= 0:
                self.fail(where, "not positive")

    message = failure(cells(tmp_path, age=["1", "-2", "3", "-2", "-4"]), age=Positive())
    assert message.startswith("3 bad rows:") and "row 3: task 'age': not positive" in message and "row 5: task" in message


def test_tasks_check_what_is_in_the_files(pets):
    class Near(Depth):
        def check(self, target: torch.Tensor, where: str) -> None:
            if target.max() > 2.0035:
                self.fail(where, "too far")

    root, rows = pets
    message = failure(module(root, split=Split()), depth=Near())
    assert f"all.csv, row 6: {rows[4]['image']}, task 'depth': too far" in message and "all.csv, row 5" not in message


def test_skip_leaves_bad_rows_out_and_says_so(pets, monkeypatch):
    root, rows = pets
    lines: list[str] = []
    monkeypatch.setattr(manifest_module, "rank_zero_info", lines.append)
    rows[0]["age"] = "old"
    (root / rows[1]["mask"]).unlink()
    (root / rows[2]["image"]).write_bytes(b"nothing")
    write_rows(root / "all.csv", rows, HEADER)
    data = module(root, split=Split(), on_error="skip")
    train = data.datasets(all_tasks(), ["train"])["train"]
    assert list(train.ids) == [row["image"] for row in rows[3:] if row["split"] == "train"]
    assert len(lines) == 1 and lines[0].startswith("left out 3 bad rows:") and "all.csv, row 3" in lines[0]


def test_a_file_that_fails_later(pets):
    root, rows = pets
    strict = module(root, split=Split(), verify=0).datasets(all_tasks(), ["train"])["train"]
    lenient = module(root, split=Split(), verify=0, on_error="skip").datasets(all_tasks(), ["train"])["train"]
    size = lenient[1]["size"]
    (root / rows[0]["image"]).write_bytes(b"nothing")
    (root / rows[1]["mask"]).write_bytes(b"nothing")
    with pytest.raises(DataError, match=rf"all.csv, row 2 .*{rows[0]['image']} cannot be read"):
        strict[0]
    with pytest.raises(DataError, match=rf"all.csv, row 3 .*task 'mask': {rows[1]['mask']} cannot be read"):
        strict[1]
    with pytest.raises(DataError, match="row 3"):
        list(strict.targets("mask", [0, 1, 2]))
    assert len(list(lenient.targets("mask", [0, 1, 2]))) == 2
    for index, expected in enumerate([(224, 224), size]):
        sample = lenient[index]
        assert set(sample) == {"id", "image", "size"} and not sample["image"].any() and sample["size"] == expected


def test_verify_bounds_what_is_decoded(pets, monkeypatch):
    root, _ = pets
    opened: list[str] = []
    monkeypatch.setattr(manifest_module, "read_image", lambda *args: opened.append(args[1]) or read_image(*args))
    for _ in range(2):
        module(root, verify=5).datasets({"breed": Classification()}, ["train", "val"])
    assert len(set(opened)) == 5 and sorted(opened[:5]) == sorted(opened[5:])


@pytest.mark.parametrize(
    ("second", "split", "duplicates", "bad"),
    [
        ("0.png", "test", "allow", True),
        ("./0.png", "test", "allow", True),
        ("0.png", "train", "error", True),
        ("0.png", "train", "allow", False),
    ],
)
def test_the_same_picture_twice(tmp_path, second, split, duplicates, bad):
    data = cells(tmp_path, label=["a", "b"])
    rows = [{"image": "0.png", "split": "train", "label": "a"}, {"image": second, "split": split, "label": "a"}]
    write_rows(tmp_path / "cells.csv", rows)
    data.duplicates = duplicates
    if bad:
        assert f"row 3: {second} ({split}) is also in cells.csv, row 2 (train)" in failure(data, label=Classification())
    else:
        assert len(data.datasets({"label": Classification()}, ["train"])["train"]) == 2


def test_unknown_columns_are_named(pets):
    root, _ = pets
    for options, task in (({"columns": {}}, "mood"), ({"columns": {"mood": "moood"}}, "mood"), ({"image": "file"}, "breed")):
        with pytest.raises(ConfigError, match="image, split, breed, species, mask"):
            module(root, **options).datasets({task: Classification()}, ["train"])
    for column in (Column(), Column("mask", columns=["a"]), Column("mask", scale=2), Column(box=["a"] * 4), ["mask", "breed"]):
        with pytest.raises(ConfigError, match=r"columns\.mask"):
            module(root, columns={"mask": column}).datasets({"mask": SemanticSegmentation(["a", "b"])}, ["train"])
    far = Column("mask", ignore=[2**62])
    with pytest.raises(ConfigError, match=r"columns\.mask: values and ignore go from 0 to 4611686018427387904"):
        module(root, columns={"mask": far}).datasets({"mask": SemanticSegmentation(["a", "b"])}, ["train"])
    with pytest.raises(ConfigError, match="none of the classes a, b"):
        module(root).datasets({"mask": SemanticSegmentation(["a", "b"])}, ["train"])


# --- the table --------------------------------------------------------------------------------------------------------------


def test_rows_are_lines_of_the_file(tmp_path):
    text = 'image,"a"\r\n1.png,x\r\n\r\n2.png,"two\nlines"\r\n3.png,"NA"\r\n4.png,\r\n'
    (tmp_path / "t.csv").write_bytes(codecs.BOM_UTF8 + text.encode())
    table = read_table(tmp_path / "t.csv", "t.csv")
    assert table.columns == ["image", "a"]
    assert [table.places.where(row) for row in range(4)] == [f"t.csv, row {line}" for line in (2, 4, 6, 7)]
    assert list(table.texts("a")) == ["x", "two\nlines", "NA", ""]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"image,a\n\xff.png,1\n", "not UTF-8"),
        (b"image,a\nx.png,1,2\ny.png,1,2\n", "row 2: the row has more cells"),
        (b"image,a\nx.png,1\ny.png,1,2\n", "line 3"),
        (b'image,a\nx.png,"1\ny.png,1\n', "no proper CSV"),
        (b"image,a\nx.png,1\ny.png\n", r"row 3: 1 cell, and the header has 2 columns; is the file cut off"),
        (b'image,a\n"x\n.png",1\ny.png\nz.png', r"row 4: 1 cell, .* \(2 rows are so\)"),
        (b"image,a\nx.png,1\ny\0.png,1\n", "row 3: there are NUL bytes"),
        ("image,a\nx.png,1\n".encode("utf-16"), "row 1: there are NUL bytes, so the file is damaged or not UTF-8"),
        (b"", "is empty"),
        (b"image,a,a\nx.png,1,2\n", "'a' is there 2 times"),
    ],
)
def test_broken_csv(tmp_path, content, problem):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read_table(tmp_path / "t.csv", "t.csv")


def test_parquet_reads_like_csv(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"i": ["a", None, "é"], "n": [3.0, None, 10.0], "f": [0.1, 2.0, None], "b": [True, False, None]})
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", "t.parquet")
    assert list(table.texts("n")) == ["3", "", "10"] and list(table.texts("i")) == ["a", "", "é"]
    assert table.numbers("f")[0].tolist()[:2] == [0.1, 2.0] and not table.numbers("f")[1].any()
    assert [text.lower() for text in table.texts("b")] == ["true", "false", ""] and table.places.where(0) == "t.parquet, row 1"
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_table(tmp_path / "t.parquet", "t.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "pyarrow":
            raise ImportError(name)
        return real(name, *args)

    (tmp_path / "t.parquet").touch()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'pip install "mtl-lightning\[parquet\]"'):
        read_table(tmp_path / "t.parquet", "t.parquet")


def test_texts():
    texts = Texts(["", "a", "éß", ""])
    assert list(texts) == ["", "a", "éß", ""] and texts[-2] == "éß" and texts.filled.tolist() == [False, True, True, False]
    assert texts[1:3] == ["a", "éß"]
    with pytest.raises(IndexError):
        texts[4]


# --- splits -----------------------------------------------------------------------------------------------------------------


def table_of(count: int, **columns: Any) -> Table:
    frame = pd.DataFrame({"image": [f"{row}.png" for row in range(count)]} | columns, dtype=str)
    return Table(frame, Places([("t.csv", count)], np.arange(2, count + 2)))


def test_fractions_are_exact_and_seeded():
    split = Split(fractions={"train": 0.7, "val": 0.1, "test": 0.2})
    codes = assign(split, table_of(1000), "image")
    assert np.bincount(codes).tolist() == [700, 100, 200]
    assert (codes == assign(split, table_of(1000), "image")).all()
    assert (codes != assign(Split(fractions=split.fractions, seed=1), table_of(1000), "image")).any()
    # Drawn at random: the first half of the file holds about half of each.
    assert abs((codes[:500] == 1).sum() - 50) < 20


def test_strata_keep_their_shares():
    labels = ["rare"] * 10 + ["common"] * 300 + ["other"] * 90
    codes = assign(Split(fractions={"train": 0.7, "val": 0.3}, stratify="y"), table_of(400, y=labels), "image")
    for label, count in (("rare", 10), ("common", 300), ("other", 90)):
        assert abs((codes[np.array(labels) == label] == 1).sum() - 0.3 * count) <= 1


def test_groups_stay_together_and_strata_are_balanced():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 600)
    labels = (groups % 3 == 0).astype(int)
    table = table_of(600, g=groups.astype(str), y=labels.astype(str))
    codes = assign(Split(fractions={"train": 0.6, "val": 0.2, "test": 0.2}, group="g", stratify="y"), table, "image")
    assert all(len(set(codes[groups == group])) == 1 for group in set(groups))
    for part, share in enumerate((0.6, 0.2, 0.2)):
        assert abs((codes == part).mean() - share) < 0.03
        assert abs(labels[codes == part].mean() - labels.mean()) < 0.05


def test_rows_of_one_picture_are_drawn_together():
    table = table_of(40, image=[f"{row // 2}.png" for row in range(40)])
    codes = assign(Split(fractions={"train": 0.5, "test": 0.5}), table, "image")
    assert (codes[::2] == codes[1::2]).all() and (codes == 0).sum() == 20


def test_hidden_labels_do_not_change_the_validation_rows(pets):
    root, rows = pets
    split = Split(column="split", val_fraction=0.25, seed=3)
    both = [
        module(root, name, split=split).datasets({"breed": Classification()}, ["val"])["val"]
        for name in ("all.csv", "partial.csv")
    ]
    train = [row["image"] for row in rows if row["split"] == "train"]
    assert list(both[0].ids) == list(both[1].ids) and len(both[0]) == round(0.25 * len(train)) and set(both[0].ids) < set(train)


def test_a_manifest_per_split(pets):
    root, rows = pets
    write_rows(root / "first.csv", [row for row in rows if row["split"] == "train"], HEADER)
    write_rows(root / "second.csv", [{"image": row["image"]} for row in rows if row["split"] == "test"])
    data = module(root, None, split=Split(files={"train": "first.csv", "test": "second.csv"}))
    parts = data.datasets({"breed": Classification()}, ["train", "val", "test"])
    assert set(parts) == {"train", "test"} and not parts["test"].labelled("breed").any()
    assert parts["test"].where(0) == f"second.csv, row 2 ({parts['test'].ids[0]})"


def test_splits_that_do_not_fit(pets):
    root, rows = pets
    for options in (
        {"column": "split", "fractions": {"train": 1.0}},
        {"fractions": {"train": 0.5, "val": 0.2}},
        {"fractions": {"train": 0.5, "holdout": 0.5}},
        {"val_fraction": 1.0},
        {"column": "where"},
        {"group": "patient"},
    ):
        with pytest.raises(ConfigError, match=r"split"):
            module(root, split=Split(**options)).datasets({"breed": Classification()}, ["train"])
    message = failure(module(root, split=Split(train="training")), "breed")
    assert "all.csv, row 2: column 'split': 'train' is none of training, val, test" in message
    rows = [row | {"split": "test"} for row in rows]
    write_rows(root / "all.csv", rows, HEADER)
    assert "no row is in the train split" in failure(module(root), "breed")


# --- files ------------------------------------------------------------------------------------------------------------------


def test_pictures_of_every_mode(tmp_path):
    red = Image.new("RGB", (5, 4), (200, 0, 0))
    clear = Image.new("RGBA", (5, 4), (200, 0, 0, 0))
    palette = Image.new("P", (5, 4), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    wide = Image.fromarray(np.full((4, 5), 257 * 80 + 100, dtype=np.uint16))
    white = [255, 255, 255]
    for name, picture, expected in (
        ("rgb.png", red, [200, 0, 0]),
        ("cmyk.tiff", red.convert("CMYK"), [200, 0, 0]),
        ("clear.png", clear, white),
        ("la.png", clear.convert("LA"), white),
        ("palette.png", palette, [200, 0, 0]),
        ("grey.png", Image.new("L", (5, 4), 80), [80, 80, 80]),
        ("bit.png", Image.new("1", (5, 4), 1), white),
        ("wide.png", wide, [80, 80, 80]),
    ):
        picture.save(tmp_path / name)
        tensor = read_image(str(tmp_path), name, 3)
        assert isinstance(tensor, tv_tensors.Image) and tensor.dtype == torch.uint8 and tensor.shape == (3, 4, 5)
        assert tensor[:, 2, 2].tolist() == expected, name
        assert read_image(str(tmp_path), name, 1).shape == (1, 4, 5) and image_size(str(tmp_path), name) == (4, 5)
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 51))
    half.save(tmp_path / "half.png")
    assert read_image(str(tmp_path), "half.png", 1).item() == 204
    Image.fromarray(np.zeros((4, 5), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match="floating-point"):
        read_image(str(tmp_path), "float.tiff", 3)


def test_pictures_are_turned_as_they_are_seen(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(str(tmp_path), "a.png", 1)[0], np.rot90(pixels, -1))
    assert image_size(str(tmp_path), "a.png") == (4, 3)
    assert np.array_equal(read_mask(str(tmp_path), "a.png"), pixels)


def test_paths(tmp_path):
    (tmp_path / "root/sub").mkdir(parents=True)
    for place in ("root/sub/a.png", "outside.png"):
        Image.new("L", (2, 3)).save(tmp_path / place)
    root = str(tmp_path / "root")
    for text in ("sub/a.png", "sub\\a.png", "./sub/../sub/a.png", f"{root}/sub/a.png"):
        assert image_size(root, text) == (3, 2)
    for text in ("../outside.png", "sub/../../outside.png", "..\\outside.png", str(tmp_path / "outside.png")):
        with pytest.raises(DataError, match="not below"):
            image_size(root, text)


def test_masks(tmp_path):
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="L").convert("P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    palette.putdata([0, 1, 2, 1])
    palette.save(tmp_path / "p.png")
    assert read_mask(str(tmp_path), "p.png").tolist() == [[0, 1], [2, 1]]
    np.save(tmp_path / "n.npy", np.array([[[300, 2]]]))
    assert read_mask(str(tmp_path), "n.npy").tolist() == [[300, 2]]
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    np.save(tmp_path / "f.npy", np.zeros((2, 2)))
    np.save(tmp_path / "o.npy", np.array([{}, 1]), allow_pickle=True)
    for name, problem in (
        ("rgb.png", "one channel"),
        ("f.npy", "whole numbers"),
        ("o.npy", "plain numbers"),
        ("no.png", "no file"),
    ):
        with pytest.raises(DataError, match=f"{name}.*{problem}|{problem} {name}"):
            read_mask(str(tmp_path), name)


def test_depth_without_a_measurement_is_zero(tmp_path):
    np.save(tmp_path / "d.npy", np.array([[1.5, -1, np.nan, np.inf, 0]], dtype=np.float64))
    assert read_depth(str(tmp_path), "d.npy", 2.0).tolist() == [[[3, 0, 0, 0, 0]]]
    Image.fromarray(np.array([[40000, 0]], dtype=np.uint16)).save(tmp_path / "d.png")
    np.testing.assert_allclose(read_depth(str(tmp_path), "d.png", 0.001), [[[40, 0]]])


def test_normals(tmp_path):
    vectors = np.array([[[0, 0, 1], [0.6, 0.8, 0], [0, 0, 0], [np.nan, 0, 1]]], dtype=np.float32)
    expected = np.nan_to_num(vectors).transpose(2, 0, 1)
    expected[:, 0, 3] = 0
    np.save(tmp_path / "hwc.npy", vectors)
    np.save(tmp_path / "chw.npy", vectors.transpose(2, 0, 1))
    Image.fromarray(np.array([[[128, 128, 255], [204, 230, 128], [0, 0, 0], [127, 128, 127]]], dtype=np.uint8)).save(
        tmp_path / "n.png"
    )
    for name in ("hwc.npy", "chw.npy", "n.png"):
        normals = read_normals(str(tmp_path), name)
        np.testing.assert_allclose(normals, expected, atol=0.01)
        assert not normals[:, 0, 2:].any()
    np.save(tmp_path / "bytes.npy", np.full((2, 2, 3), 128.0))
    Image.new("L", (2, 2)).save(tmp_path / "grey.png")
    for name in ("bytes.npy", "grey.png"):
        with pytest.raises(DataError, match=f"{name}.*expected"):
            read_normals(str(tmp_path), name)


# --- the configuration ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_the_configuration_survives_its_own_dump(pets, tmp_path):
    root, _ = pets
    parser = ArgumentParser()
    parser.add_subclass_arguments(MultiTaskDataModule, "data")
    options = {"root": str(root), "manifest": "all.csv", "columns": COLUMNS, "split": {"column": "split", "val_fraction": 0.25}}
    name = f"{ManifestDataModule.__module__}.{ManifestDataModule.__name__}"
    config = parser.parse_object({"data": {"class_path": name, "init_args": options | {"num_workers": 0}}})
    again = parser.parse_string(parser.dump(config))
    data = parser.instantiate_classes(again).data
    assert data.columns == PARSED and data.split == Split(column="split", val_fraction=0.25)
    assert set(data.datasets(all_tasks(), ["train", "val", "test"])) == {"train", "val", "test"}
