"""What a configuration with a typo is answered."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtl_lightning.advice import LENGTH, advise, shortened
from mtl_lightning.main import main

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
TINY = yaml.safe_load(CONF.read_text())
FIT = "python -m mtl_lightning fit"


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    streams = capsys.readouterr()
    assert caught.value.code == 2, streams.err
    message = streams.err[streams.err.index("error: ") :]
    assert len(message) < LENGTH + 200
    assert len(message.splitlines()) <= 2
    for noise in ("Namespace", "\u200b", "Subtypes", "dot import", "<class", "unicode string", "Traceback", "{'"):
        assert noise not in message
    return message


def written(folder: Path, key: str, value: Any) -> Path:
    """The tiny configuration with another value at ``a/b/c``."""
    config = copy.deepcopy(TINY)
    *parts, last = key.split("/")
    inner = config
    for part in parts:
        inner = inner.setdefault(part, {})
    inner[last] = value
    file = folder / "typo.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def made(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


CASES = [
    ("model/weighting", "uw", ["model.weighting", "no class 'uw'", "Did you mean UW?"]),
    (
        "model/weighting",
        made("DWA", temprature=3),
        ["model.weighting.init_args.temprature", "temperature?", "weighting.help DWA"],
    ),
    ("model/tasks/color", "Clasification", ["model.tasks.color", "'Clasification'", "Did you mean Classification?"]),
    ("model/tasks/color/class_path", "Clasification", ["tasks.color.class_path", "'Clasification'", "Classification?"]),
    (
        "model/tasks/mask/init_args/clases",
        ["a"],
        ["tasks.mask.init_args.clases", "classes?", f"{FIT} --model.tasks.help SemanticSegmentation"],
    ),
    ("model/tasks/color/init_args", {"wieght": 2}, ["tasks.color.init_args.wieght", "weight?"]),
    ("model/tasks/color/init_args", {"weight": "two"}, ["tasks.color.init_args.weight is 'two'", "expected float"]),
    ("model/tasks/color/weight", 2, ["tasks.color.weight", "under init_args", "tasks.color.init_args.weight"]),
    ("model/tasks/mask/init_args/head", "FNC", ["tasks.mask.init_args.head", "'FNC'", "FCN"]),
    ("model/tasks/mask/init_args/head", made("FCN", widht=3), ["tasks.mask.init_args.head.init_args.widht", "width?"]),
    ("model/tasks/mask/init_args/head", made("FCN", chanels=3), ["head.init_args.chanels", "dropout, norm, width"]),
    ("model/encoder/class_path", "SmalCNN", ["model.encoder.class_path", "SmallCNN?"]),
    ("model/encoder/init_args/width", [8], ["encoder.init_args.width", "widths?", f"{FIT} --model.encoder.help SmallCNN"]),
    ("model/architecture", "HardSharring", ["model.architecture", "HardSharing?"]),
    ("model/optimizer/class_path", "torch.optim.AdamWW", ["model.optimizer", "torch.optim.AdamW"]),
    ("model/optimizer/init_args/lrate", 1, ["optimizer.init_args.lrate", "lr, ", "--model.optimizer.help torch.optim.AdamW"]),
    ("model/weighing", "UW", ["model.weighing", "weighting?", f"{FIT} --help"]),
    ("data/class_path", "FolderDataModul", ["data.class_path", "FolderDataModule"]),
    ("data/class_path", "tests.tiny.TinyDataModul", ["data.class_path", "tests.tiny.TinyDataModule?"]),
    ("data/init_args/batchsize", 8, ["data.init_args.batchsize", "batch_size?", "--data.help tests.tiny.TinyDataModule"]),
    ("data/init_args/batch_size", "eight", ["data.init_args.batch_size is 'eight'", "expected int"]),
    ("trainer/max_epoch", 2, ["trainer.max_epoch:", "max_epochs", f"{FIT} --help"]),
    ("trainer/max_epochs", "two", ["trainer.max_epochs is 'two'", "expected int or null"]),
    ("trainer/callbacks", [made("EarlyStoping")], ["trainer.callbacks[0]", "EarlyStopping?"]),
    ("checkpoint/moniter", "val/loss", ["checkpoint.moniter", "monitor?"]),
    ("checkpoint/mode", "maximum", ["checkpoint.mode is 'maximum'", "'min', 'max' or null"]),
    ("moddel", {"a": 1}, ["moddel", "model?"]),
]


@pytest.mark.parametrize(("key", "value", "words"), CASES, ids=[f"{key}={value}"[:50] for key, value, _ in CASES])
def test_a_typo_in_a_file_is_located_and_corrected(
    key: str, value: Any, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, key, value)
    message = fails(capsys, "fit", "--config", str(file), "--print_config")
    for word in [str(file), *words]:
        assert word in message.replace("\n", " ")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--model.weighting", "uw"], ["--model.weighting: ", "UW?"]),
        (["--model.tasks.color.init_args.wieght=3"], ["tasks.color.init_args.wieght", "Classification has no", "weight?"]),
        (["--data.init_args.batchsize", "3"], ["data.init_args.batchsize", "TinyDataModule", "batch_size?"]),
        (["--trainer.epochs=3"], ["--trainer.epochs: ", f"{FIT} --help"]),
        (["--model.optimizer=nowhere.AdamX"], ["'nowhere.AdamX'", "Adam"]),
        (["--model.optimizer=nowhere.Nothing"], ["'nowhere.Nothing'", "There are: ", "SGD"]),
    ],
)
def test_a_typo_on_the_command_line(option: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "fit", "--config", str(CONF), *option)
    for word in words:
        assert word in message
    assert str(CONF) not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model:\n  tasks:\n    a: [1, 2\n  b: 3\n", ["line 4, column 4", "no valid YAML"]),
        ("model:\n\ttasks: 1\n", ["line 2, column 1", "no valid YAML"]),
        ("- model\n", ["holds a list", "model, data and trainer"]),
        ("", ["is empty", "model, data and trainer"]),
    ],
    ids=["bracket", "tab", "list", "empty"],
)
def test_a_file_that_is_no_configuration(text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    message = fails(capsys, "fit", f"--config={file}")
    for word in [str(file), *words]:
        assert word in message


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fit"], ["--config FILE is missing"]),
        (["test"], ["--config FILE is missing", "mtl_lightning test --config FILE"]),
        (["fit", "--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["fit", "-c", "tests"], ["tests", "folder"]),
        (["fit", "tests/conf/tiny.yaml"], ["--config tests/conf/tiny.yaml"]),
        (["--config", str(CONF), "fit"], [f"{FIT} --config FILE"]),
        (["fitt"], ["'fitt'", "Did you mean fit?"]),
        ([], ["a command is missing", "fit, validate"]),
    ],
)
def test_an_incomplete_command(
    args: list[str], words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mtl-lightning"])
    monkeypatch.chdir(CONF.parents[2])
    message = fails(capsys, *args)
    for word in words:
        assert word in message


def test_a_missing_part_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "part.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in TINY.items() if key != "data"}))
    message = fails(capsys, "fit", "--config", str(file))
    assert f"{file}: data missing" in message


def test_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    config = copy.deepcopy(TINY)
    config["model"]["weighting"] = "uw"
    with pytest.raises(SystemExit) as caught:
        main({"subcommand": "fit", "fit": config})
    assert caught.value.code == 2
    assert "model.weighting: there is no class 'uw'. Did you mean UW?" in capsys.readouterr().err


def test_text_that_may_name_a_class_but_need_not_is_no_typo(capsys: pytest.CaptureFixture[str]) -> None:
    config = CONF.parents[2] / "configs" / "pets.yaml"
    message = fails(capsys, "fit", "--config", str(config), "--data.init_args.num_workers=abc")
    assert "--data.init_args.num_workers is 'abc': expected int" in message
    assert "no class" not in message


def test_what_is_not_understood_is_shortened() -> None:
    text = 'Parser key "model":\n  Problem \u200bwith it\n  Subtypes: [a, b]\n  Given value: {1: 2}\n' + "x" * 2000
    message = advise(text, ["fit", "--config", str(CONF)])
    assert message.startswith("model: Problem with it xxx")
    assert message.endswith(f"\nAll keys: {FIT} --help")
    assert len(message) < LENGTH + 100
    assert "Subtypes" not in message and "Given" not in message


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_tells_our_meaning_of_checkpoints(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "of the latest run of that name" in text
    assert "hpc" not in text and 'registry"' not in text


def test_help_names_every_command_in_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Train one network for many tasks" in text and "export" in text
    assert "Evaluate a checkpoint on the test split. predict" in text


def test_an_argument_that_a_factory_misses_is_named_without_the_factorys_type() -> None:
    said = "Type collections.abc.Callable[[Encoder, Sequence[str]], Architecture] expects a function or a callable class: "
    missing = "the following arguments are required: shared"
    assert shortened(f"model.architecture: {said}{missing}") == f"model.architecture: {missing}"
