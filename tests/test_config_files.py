"""Files that YAML reads and nobody meant, and overlays of two."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mtl_lightning.blame import Builder, Located, explain
from mtl_lightning.config import CheckpointOptions
from mtl_lightning.data.workers import check_timeout
from mtl_lightning.errors import ConfigError
from mtl_lightning.hints import Types
from mtl_lightning.main import main

TINY = Path(__file__).parent / "conf" / "tiny.yaml"
TWICE = "model:\n  encoder_lr: 1.0\n  encoder_lr: 2.0\n"
DEEP = "name: tiny\nmodel:\n  tasks:\n    color: {class_path: Classification, init_args: {weight: 2, weight: 3}}\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(TWICE, ["model.encoder_lr is there twice", "lines 2 and 3"], id="a key twice"),
        pytest.param(DEEP, ["model.tasks.color.init_args.weight is there twice"], id="a key twice within"),
        pytest.param("model: &a\n  tasks: *a\n", ["model.tasks contains itself"], id="an anchor in itself"),
        pytest.param("model: &a {}\ndata: *b\n", ["no valid YAML", "'b'"], id="no such anchor"),
        pytest.param(b"\xff\xfe\x00m", ["no UTF-8"], id="not UTF-8"),
        pytest.param("name: " + "[" * 3000, ["nested too deeply"], id="deep"),
        pytest.param("model: !!python/object/apply:os.system [exit]\n", ["no valid YAML", "os.system"], id="a command"),
        pytest.param("model: 3\n", ["model is 3"], id="a number for a part"),
        pytest.param("model: {}\n---\ndata: {}\n", ["another document"], id="two documents"),
        pytest.param("model:\n\tencoder_lr: 1\n", ["line 2", "no valid YAML"], id="tab"),
        pytest.param("", ["is empty"], id="empty"),
    ],
)
@pytest.mark.parametrize("first", [[], ["--config", "tests/conf/tiny.yaml"]], ids=["alone", "overlay"])
def test_a_file_that_nobody_meant(
    content: str | bytes, words: list[str], first: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(TINY.parents[2])  # the first file's path is relative: the parser reads each in its own folder
    file = tmp_path / "bad.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as caught:
        main(["fit", *first, "--config", str(file), "--runs", str(tmp_path / "runs")])
    message = capsys.readouterr().err
    assert caught.value.code in (1, 2) and "Traceback" not in message and message.count("error: ") == 1
    assert all(word in message for word in [str(file), *words]), message
    assert not (tmp_path / "runs").exists()


def test_an_anchor_may_be_used_often(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "often.yaml").write_text("model:\n  only: &names [color]\n  inputs: &i {color: image}\nname: often\n")
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(TINY), "--config", str(tmp_path / "often.yaml"), "--print_config"])
    assert caught.value.code == 0
    assert "name: often" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.tasks.color.init_args.weight=abc", ["model.tasks.color.init_args.weight is 'abc'", "expected float"]),
        ("--model.tasks.color.init_args.weight=null", ["model.tasks.color.init_args.weight is null", "expected float"]),
        ("--model.encoder_lr=.nan", ["model.encoder_lr is nan", "finite"]),
        ("--seed_everything=-1", ["seed_everything is -1", "0 to 4294967295"]),
        ("--trainer.accumulate_grad_batches=0", ["trainer.accumulate_grad_batches is 0", "1 or more"]),
        ("--data.init_args.num_workers=1000000", ["data.init_args.num_workers is 1000000"]),
        ("--model.optimizer.init_args.lr=-1", ["model.optimizer.init_args.lr is -1.0", "AdamW refuses"]),
        ("--model.tasks.mask.init_args.head.init_args.dropout=7", ["model.tasks.mask.init_args.head.init_args.dropout is 7"]),
        ("--model.tasks.color.init_args.label_smoothing=7", ["model.tasks.color.init_args.label_smoothing is 7.0"]),
        ("--nonsense=3", ["nonsense"]),
        ("--trainer.default_root_dir=elsewhere", ["trainer.default_root_dir is elsewhere", "set runs"]),
        ("--trainer.enable_checkpointing=false", ["trainer.enable_checkpointing is false", "leave it out"]),
        ("--trainer.barebones=true", ["trainer.barebones is true", "leave it out"]),
        ("--weights_only=false", ["weights_only is false", "true or null"]),
        ("--checkpoint.every_n_steps=0", ["checkpoint.every_n_steps is 0", "1 or more"]),
        ("--checkpoint.every_minutes=0", ["checkpoint.every_minutes is 0.0", "> 0"]),
    ],
)
def test_an_option_that_cannot_be(option: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(TINY), "--runs", str(tmp_path / "runs"), option])
    message = capsys.readouterr().err
    assert caught.value.code in (1, 2) and message.count("error: ") == 1
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [1, -3], [True, 1.5, "one", None, [1]]),
        (float, [1, 0.5, "1e-3"], [True, "x", {}]),
        (bool, [True], [1, "yes", None]),
        (list[int] | None, [None, [], [1]], [["a"], 3, {}]),
        (tuple[float, float], [[1, 2]], [[1], [1, 2, 3], "ab"]),
        (dict[str, float] | float, [{"a": 1.0}, 2], [{"a": "b"}, "x"]),
    ],
)
def test_what_is_of_a_type(hint: Any, right: list[Any], wrong: list[Any]) -> None:
    types = Types({"key": hint})
    assert not [value for value in right if list(types({"key": value}))]
    assert all(list(types({"key": value})) for value in wrong)


class Two:
    """Refuses what is negative, as torch would."""

    def __init__(self, first: float = 1.0, second: float = 1.0) -> None:
        if first < 0 or second < 0:
            raise ValueError(f"Invalid thing: {min(first, second)}")


def test_the_place_of_what_was_refused_is_found_among_alikes() -> None:
    path = f"{__name__}.Two"
    config = {"a": {"class_path": path, "init_args": {"first": 1.0, "second": 2.0}},
              "b": [{"class_path": path, "init_args": {"first": 1.0, "second": -2.0}}]}  # fmt: skip
    with pytest.raises(Located, match=r"b\[0\]\.init_args\.second is -2\.0, which Two refuses: Invalid thing: -2\.0"):
        Builder(config)(Two, first=1.0, second=-2.0)
    ours = ConfigError("label first is -1, expected 0 or more")
    assert explain(ours, "model.x", Two, {"first": -1}) == "label model.x.first is -1, expected 0 or more"


def test_numbers_of_a_refusal_that_several_arguments_have_tell_nothing() -> None:
    both = {"first": 4, "second": 8}
    told = explain(RuntimeError("cannot make a thing of 4 and 8"), "model.x", Two, both)
    assert told.startswith("model.x.first is 4 and second is 8, which Two refuses")
    assert explain(RuntimeError("a thing of 8 is too large"), "model.x", Two, both).startswith("model.x.second is 8, which")


class Clamped(torch.optim.SGD):
    """A class of one's own, with a default that no finite number can stand for."""

    def __init__(self, params: Any, lr: float = 0.01, ceiling: float = float("inf"), floor: float = float("nan")) -> None:
        super().__init__(params, lr)
        self.ceiling, self.floor = ceiling, floor


def test_what_a_class_has_by_itself_need_not_be_finite(tmp_path: Path, no_pictures: None, capsys: Any) -> None:
    own = "--model.optimizer=tests.test_config_files.Clamped"
    words = ["fit", "--config", str(TINY), "--runs", str(tmp_path), "--trainer.max_steps=1", own]
    main([*words, "--name=own"])
    main(["fit", "--config", str(tmp_path / "own/config.yaml")])  # as it was written
    for value in (".nan", "-.inf"):
        with pytest.raises(SystemExit):
            main([*words, f"--model.optimizer.init_args.ceiling={value}"])
        assert "model.optimizer.init_args.ceiling is" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0])
def test_numbers_are_in_their_range(value: float) -> None:
    with pytest.raises(ConfigError, match=f"checkpoint.every_minutes is {value}, expected > 0"):
        CheckpointOptions(every_minutes=value)
    if value:
        with pytest.raises(ConfigError, match=f"worker_timeout is {value}, expected 0 or more"):
            check_timeout(value)
