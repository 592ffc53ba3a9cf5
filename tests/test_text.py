"""Texts from the file to the trained model: tokeniser, CLINC150, tables of texts, prediction, export, resume."""

import csv
import importlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mtl_lightning
from mtl_lightning.batch import Collate
from mtl_lightning.data import Clinc150DataModule, TextManifestDataModule, TokenizerOptions
from mtl_lightning.data.text import tokens
from mtl_lightning.data.text.dataset import Tokenise, find_texts
from mtl_lightning.data.text.tokens import Tokenizer
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.main import main
from mtl_lightning.tasks import Classification, MultiLabel, Regression
from tests.data.clinc150 import DOMAINS, write_clinc150, write_texts

TEXTS = ["Book a table", "book a flight, please", "what's the weather?", "naïve café", "freeze my account"]
TINY = {
    "name": "texts",
    "model": {
        "tasks": {name: {"class_path": "Classification"} for name in ("domain", "intent", "out_of_scope")},
        "encoder": {"class_path": "BagOfWords", "init_args": {"vocabulary": 400, "width": 16, "hidden": [8]}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.03}},
    },
    "data": {
        "class_path": "Clinc150DataModule",
        "init_args": {"batch_size": 16, "word_dropout": 0.1, "hidden": {"intent": 0.3}, "tokenizer": {"max_length": 16}},
    },
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1},
}

GRU = "--model.encoder={class_path: TextGRU, init_args: {vocabulary: 400, width: 16, hidden: 8}}"


@pytest.fixture(scope="module")
def clinc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clinc")
    write_clinc150(root)
    return root


def tasks() -> dict[str, Any]:
    made = {name: Classification() for name in ("domain", "intent", "out_of_scope")}
    for name, task in made.items():
        task.name = name
    return made


def words(tmp_path: Path, clinc: Path, **data: Any) -> list[str]:
    config = json.loads(json.dumps(TINY))
    config["data"]["init_args"] |= {"root": str(clinc), **data}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(tmp_path / "config.yaml"), "--runs", str(tmp_path / "runs")]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_same_texts_give_the_same_tokenizer(kind: Any) -> None:
    generator = random.Random(0)
    texts = [" ".join(generator.choices(" ".join(TEXTS).split(), k=6)) for _ in range(50)]
    options = TokenizerOptions(kind=kind, vocabulary=60, max_length=4)
    first, second = Tokenizer.learn(options, texts), Tokenizer.learn(options, texts[::-1])
    assert first.json == second.json and first.size <= 60
    again = Tokenizer(first.json)
    for text in [*TEXTS, "xyzzy", "", "BOOK A TABLE"]:
        ids = first.ids(text)
        assert ids.dtype == torch.long and 1 <= len(ids) <= 4 and int(ids.min()) >= 1 and int(ids.max()) < first.size
        assert torch.equal(ids, again.ids(text))
    assert torch.equal(first.ids("BOOK A TABLE"), first.ids("book a table"))
    assert first.ids("").tolist() == [1]
    assert Tokenizer.learn(TokenizerOptions(lowercase=False), texts).ids("Book") != Tokenizer.learn(
        TokenizerOptions(lowercase=False), texts
    ).ids("BOOK")


def test_rare_words_are_unknown_and_counted() -> None:
    made = Tokenizer.learn(TokenizerOptions(min_count=2, max_length=3), ["a b", "a b c", "a"])
    assert made.ids("c a").tolist()[0] == 1 and made.size == 4
    found = made.survey(["a b c d", "a"])
    assert found == {"longest": 4, "cut": 0.5, "unknown": 0.4}
    assert made.ids("a b c d").shape == (3,)


def test_a_tokenizer_from_a_file(tmp_path: Path) -> None:
    made = Tokenizer.learn(TokenizerOptions(), TEXTS)
    (tmp_path / "tokenizer.json").write_text(made.json)
    taken = Tokenizer.learn(TokenizerOptions(file=str(tmp_path / "tokenizer.json"), max_length=2), ["other words"])
    assert taken.ids("book a table").tolist() == made.ids("book a table").tolist()[:2]
    with pytest.raises(ConfigError, match=r"tokenizer.file: there is no file .*none.json"):
        Tokenizer.learn(TokenizerOptions(file=str(tmp_path / "none.json")), [])
    (tmp_path / "tokenizer.json").write_text(made.json[:100])
    with pytest.raises(ConfigError, match=r"tokenizer.file .*tokenizer.json is no JSON of a tokenizer"):
        Tokenizer.learn(TokenizerOptions(file=str(tmp_path / "tokenizer.json")), [])
    (tmp_path / "tokenizer.json").write_text(made.json.replace("[PAD]", "[CLS]"))
    with pytest.raises(ConfigError, match=r"id 0 is not \[PAD\]"):
        Tokenizer.learn(TokenizerOptions(file=str(tmp_path / "tokenizer.json")), [])


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(tokens, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'mtl-lightning\[text\]'"):
        Tokenizer.learn(TokenizerOptions(), TEXTS)
    assert importlib.import_module("json")


def test_rows_out_of_scope_have_neither_domain_nor_intent(clinc: Path) -> None:
    made = tasks()
    found = Clinc150DataModule(root=str(clinc)).datasets(made, ["train", "test"])
    assert made["intent"].names == sorted(intent for listed in DOMAINS.values() for intent in listed)
    assert made["domain"].names == sorted(DOMAINS)
    train = found["train"]
    assert len(train) == 80 and len(found["test"]) == 40 - 10
    assert train.labelled("out_of_scope").all() and train.labelled("intent").sum() == train.labelled("domain").sum() == 72
    for row in (0, 30, 79):
        sample = train[row]
        if row == 79:
            assert set(sample) == {"id", "text", "out_of_scope"} and int(sample["out_of_scope"]) == 1
        else:
            intent, domain = made["intent"].names[int(sample["intent"])], made["domain"].names[int(sample["domain"])]
            assert intent in DOMAINS[domain] and intent.replace("_", " ") in sample["text"] and int(sample["out_of_scope"]) == 0
    assert len(Clinc150DataModule(root=str(clinc), file="data_small.json").datasets(tasks(), ["train"])["train"]) == 40


def test_hidden_labels_are_those_of_training_and_of_each_task_alone(clinc: Path) -> None:
    some = Clinc150DataModule(root=str(clinc), hidden={"intent": 0.9}).datasets(tasks(), ["train", "val"])
    more = Clinc150DataModule(root=str(clinc), hidden={"intent": 0.9, "domain": 0.5}, seed=7).datasets(tasks(), ["train", "val"])
    assert 1 <= some["train"].labelled("intent").sum() <= 15 and some["train"].labelled("domain").sum() == 72
    assert np.array_equal(some["train"].labelled("intent"), more["train"].labelled("intent"))
    assert more["val"].labelled("intent").sum() == 27


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "data_full.json").unlink(), r"data_full.json cannot be read .*CLINC150.*UCI.*data.init_args.root"),
        (lambda root: cut(root / "data_full.json"), r"data_full.json is no proper JSON .*cut off"),
        (lambda root: (root / "domains.json").unlink(), r"domains.json cannot be read"),
        (lambda root: cut(root / "domains.json"), r"domains.json is no proper JSON"),
        (lambda root: (root / "domains.json").write_text("[1]"), r"does not hold a list of intents for each domain"),
        (lambda root: change(root, lambda d: d.pop("oos_val")), r"has no lists oos_val, expected train, oos_train"),
        (lambda root: change(root, lambda d: d["val"].insert(2, ["text alone"])), r"val, entry 2: \['text alone'\] is no pair"),
        (lambda root: change(root, lambda d: d["val"].insert(1, ["a", "b"])), r"val, entry 1: the intent 'b' is not one of"),
        (lambda root: change(root, lambda d: d["oos_test"].insert(0, ["a", "balance"])), r"oos_test, entry 0: .* is not 'oos'"),
    ],
)
def test_files_that_are_missing_or_broken(spoil: Any, message: str, tmp_path: Path) -> None:
    write_clinc150(tmp_path, train=2, other=1)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        Clinc150DataModule(root=str(tmp_path)).datasets(tasks(), ["train"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def change(root: Path, how: Any) -> None:
    stored = json.loads((root / "data_full.json").read_text())
    how(stored)
    (root / "data_full.json").write_text(json.dumps(stored))


def test_texts_of_a_batch_are_filled_up() -> None:
    prepare = Tokenise(Tokenizer.learn(TokenizerOptions(), TEXTS))
    rows = [{"id": f"{row}", "text": text, "kind": torch.tensor(row)} for row, text in enumerate(TEXTS[:2])]
    del rows[0]["kind"]
    kind = Classification(classes=["a", "b"])
    batch = Collate({"kind": kind.target}, ["text"])([prepare(row) for row in rows])
    assert batch.inputs["text"].shape == (2, 5) and batch.inputs["text"][0, 3:].tolist() == [0, 0]
    assert batch.texts == TEXTS[:2] and batch.sizes.tolist() == [[1, 3], [1, 5]] and batch.extent(0) == (1, 3)
    assert batch.labelled["kind"].tolist() == [False, True] and batch.padding is None
    torch.manual_seed(0)
    dropped = Tokenise(prepare.tokenizer, 0.5)(rows[1])["text"]
    assert 0 < int((dropped == 1).sum()) < 5 and len(dropped) == 5


def test_fit_test_predict_load_and_export(tmp_path: Path, clinc: Path) -> None:
    common = words(tmp_path, clinc)
    main(["fit", *common])
    run = tmp_path / "runs" / "texts"
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    tokenizer = Tokenizer(checkpoint["mtl_preparation"]["tokenizer"])
    main(["test", *common])
    main(["predict", *common])
    assert (run / "predictions_test.png").stat().st_size > 10_000
    rows = {row["text"]: row for row in csv.DictReader((run / "predictions/predictions.csv").open())}
    assert len(rows) == 30
    # From the checkpoint alone: neither the data nor the configuration's files are needed.
    (tmp_path / "given.txt").write_text("\n".join([*list(rows)[:3], "", "freeze my account"]) + "\n")
    gone = [*common, "--data.init_args.root", str(tmp_path / "gone")]
    main(["predict", *gone, "--inputs", str(tmp_path / "given.txt"), "--folder", str(tmp_path / "out")])
    given = list(csv.DictReader((tmp_path / "out/predictions.csv").open()))
    assert [row["id"] for row in given] == [f"given.txt, line {line}" for line in (1, 2, 3, 5)]
    for row in given[:3]:
        assert all(rows[row["text"]][key] == row[key] for key in ("domain", "intent", "out_of_scope"))
    assert (tmp_path / "out/contact_sheet.png").exists()
    model = mtl_lightning.load(run)
    assert [result["intent"].name for result in model.predict([row["text"] for row in given])] == [row["intent"] for row in given]
    alone = model.predict(given[3]["text"])
    assert alone["domain"].probability == pytest.approx(float(given[3]["domain.probability"]), abs=1e-5)
    with pytest.raises(DataError, match="text 1 is a int, expected a string"):
        model.predict(["a", 3])
    main(["export", "--run", str(run)])
    about = json.loads((run / "model.pt2.json").read_text())["input"]
    assert about["shape"] == ["batch", 16] and about["ids_below"] == tokenizer.size
    beside = Tokenizer((run / "model.pt2.tokenizer.json").read_text())
    ids = torch.zeros(1, 16, dtype=torch.long)
    ids[0, : len(beside.ids(given[3]["text"]))] = beside.ids(given[3]["text"])
    outputs = torch.export.load(run / "model.pt2").module()(ids)
    assert float(outputs["domain"].detach().max()) == pytest.approx(alone["domain"].probability, abs=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.encoder=SmallCNN", "model.encoder is SmallCNN, which reads no texts"),
        ("--model.encoder.init_args.vocabulary=20", r"vocabulary is 20, and the tokenizer has \d+ ids"),
        (
            "--model.encoder={class_path: TextTransformer, init_args: {vocabulary: 400, max_length: 9}}",
            "max_length is 9",
        ),
        (
            "--model.tasks.domain={class_path: Depth}",
            "task 'domain' is a Depth, which predicts for each pixel",
        ),
        ("--model.tasks.domain.init_args.head=FCN", "(?s)head.*FCN"),
        ("--model.tasks.domain.init_args.head=UNet", "(?s)head.*UNet"),
        ("--model.tasks.domain={class_path: Regression}", "'domain' is a class, but Regression learns numbers"),
        ("--data.init_args.targets={domain: colour}", "CLINC150 has no quantity 'colour', only domain, intent, out_of_scope"),
        ("--data.init_args.hidden={colour: 0.5}", "hidden.colour: there is no such task"),
        ("--data.init_args.hidden=1.5", "hidden is 1.5, expected a share"),
        ("--data.init_args.word_dropout=1", "word_dropout is 1.0, expected a share"),
        ("--data.init_args.tokenizer.vocabulary=2", "tokenizer.vocabulary is 2, expected 3 or more"),
    ],
)
def test_what_does_not_go_with_texts(
    option: str, message: str, tmp_path: Path, clinc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    with pytest.raises(SystemExit):
        main(["fit", *words(tmp_path, clinc), option])
    assert re.search(message, capsys.readouterr().err)
    assert not list((tmp_path / "runs").glob("*/checkpoints"))


def test_texts_to_predict_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("said,topic\nhello there,\n,x\nbye,\n")
    with pytest.raises(DataError, match=r"no text in column 'said' of a.csv, row 3"):
        find_texts(tmp_path / "a.csv", "said", "raise")
    assert find_texts(tmp_path / "a.csv", "said", "skip").texts == ["hello there", "", "bye"]
    with pytest.raises(ConfigError, match=r"--column: a\.csv has no column 'text'"):
        find_texts(tmp_path / "a.csv", "text", "raise")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00 caf\xe9")
    (tmp_path / "c.txt").write_text("\n \n")
    for name, message in {"b.txt": "is not UTF-8", "c.txt": "there is no text in it", "": "is a folder"}.items():
        with pytest.raises(DataError, match=message):
            find_texts(tmp_path / name, "text", "raise")


def manifest_tasks() -> dict[str, Any]:
    made: dict[str, Any] = {"topic": Classification(), "urgent": MultiLabel(), "length": Regression()}
    for name, task in made.items():
        task.name = name
    return made


def test_a_table_of_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_texts(tmp_path)
    config = json.loads(json.dumps(TINY))
    config["model"]["tasks"] = {"topic": {"class_path": "Classification"}, "length": {"class_path": "Regression"}}
    config["data"] = {"class_path": "TextManifestDataModule",
                      "init_args": {"root": str(tmp_path), "manifest": "texts.csv", "batch_size": 8}}  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    common = ["--config", str(tmp_path / "config.yaml"), "--runs", str(tmp_path / "runs")]
    main(["check", *common])
    report = (tmp_path / "runs/texts-check/report.md").read_text()
    assert "| topic | 14 of 28 (50 %)" in report and "Pictures as stored" not in report
    assert (tmp_path / "runs/texts-check/contact_sheet.png").exists()
    main(["fit", *common, "--trainer.max_epochs=1"])
    summary = json.loads((tmp_path / "runs/texts/summary.json").read_text())
    assert set(summary["val"]["tasks"]) == {"topic", "length"}
    made = manifest_tasks()
    found = TextManifestDataModule(str(tmp_path), "texts.csv").datasets(made, ["train", "val", "test"])
    assert {split: len(rows) for split, rows in found.items()} == {"train": 28, "val": 6, "test": 6}
    assert made["topic"].names == sorted(DOMAINS) and found["train"].where(0) == "texts.csv, row 2"


def test_bad_rows_of_a_table_of_texts(tmp_path: Path) -> None:
    write_texts(tmp_path)
    lines = (tmp_path / "texts.csv").read_text().splitlines()
    lines[3] = ",train,banking,0,1"
    lines[5] = lines[4].rsplit(",", 4)[0] + ",test,banking,2,3"
    (tmp_path / "texts.csv").write_text("\n".join(lines))
    data = {"root": str(tmp_path), "manifest": "texts.csv"}
    with pytest.raises(DataError) as caught:
        TextManifestDataModule(**data).datasets(manifest_tasks(), ["train"])
    emptied, leaking = "row 4: column 'text': there is no text", "row 6: its text (test) is also in texts.csv, row 5 (train)"
    for part in (emptied, leaking, "'2' is not 0"):
        assert part in str(caught.value)
    kept = TextManifestDataModule(**data, on_error="skip").datasets(manifest_tasks(), ["train", "test"])
    assert len(kept["train"]) == 26 and len(kept["test"]) == 6
    made = manifest_tasks()
    everything = TextManifestDataModule(**data).examined(made)
    examined = [part.examine(row, made) for part in everything.values() for row in range(len(part))]
    problems = [problem for row in examined for problem in row.problems]
    assert len(problems) == 3


@pytest.mark.slow
def test_a_resumed_run_is_the_run(tmp_path: Path, clinc: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    common = [GRU, "--trainer.max_epochs=3"]
    main(["fit", *words(whole, clinc), *common])
    main(["fit", *words(parts, clinc), *common, "--trainer.max_steps=7", "--checkpoint.every_n_steps=1"])
    main(["fit", *words(parts, clinc), *common, "--ckpt_path=last"])
    first, second = (torch.load(folder / "runs/texts/checkpoints/last.ckpt", weights_only=True) for folder in (whole, parts))
    assert first["mtl_preparation"] == second["mtl_preparation"]
    for key, value in first["state_dict"].items():
        if isinstance(value, torch.Tensor) and key.startswith("model."):
            assert torch.equal(value, second["state_dict"][key]), key
