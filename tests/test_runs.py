"""Run folders: which one is the latest, and what is wrong with one that is damaged."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

import mtl_lightning
from mtl_lightning.analysis.logged import read_rows
from mtl_lightning.errors import CheckpointError
from mtl_lightning.main import main
from mtl_lightning.runs import choose_run, discard, find_checkpoint, keep_config, latest_run, new_folder
from mtl_lightning.storage import read_json, replace_text

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
LIMITS = {"train": 2, "val": 1, "test": 1}
SHORT = (
    *("--model.only=[level]", "--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=0"),
    *(f"--trainer.limit_{split}_batches={batches}" for split, batches in LIMITS.items()),
)


def call(command: str, root: Path, *args: str) -> None:
    main([command, "--config", str(CONF), "--runs", str(root), *args])


def error_of(capsys: pytest.CaptureFixture[str], command: str, root: Path, *args: str) -> str:
    """The one message of a command that ends with 1."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(command, root, *args)
    said = capsys.readouterr().err
    assert caught.value.code == 1 and "Traceback" not in said, said
    return said


def run_of(root: Path, name: str) -> Path:
    """A new folder with its configuration."""
    folder = new_folder(root, name)
    keep_config(folder, f"name: {name}\n")
    return folder


def test_a_new_run_is_the_latest_also_where_an_earlier_one_was_removed(tmp_path: Path) -> None:
    first, second = run_of(tmp_path, "net"), run_of(tmp_path, "net")
    discard(first)
    third = run_of(tmp_path, "net")
    assert [second.name, third.name] == ["net-2", "net-3"] and latest_run(tmp_path, "net") == third
    checkpoint = third / "checkpoints/last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    assert choose_run(tmp_path, "net") == (True, f"{third} goes on")


def test_a_new_run_passes_over_folders_of_other_runs(tmp_path: Path) -> None:
    assert run_of(tmp_path, "net-3").name == "net-3"
    assert [run_of(tmp_path, "net").name for _ in range(3)] == ["net", "net-2", "net-4"]


@pytest.mark.parametrize("what", ["a dangling link", "a file"])
def test_runs_cannot_be_where_no_folder_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    root = tmp_path / "runs"
    if what == "a file":
        root.touch()
    else:
        root.symlink_to(tmp_path / "gone" / "away")
    said = error_of(capsys, "fit", root)
    assert f"cannot make the run folder {root / 'tiny'}" in said and f"{root} is there and is no folder" in said
    assert "set runs to" in said


def test_small_files_of_a_run_that_are_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, later = tmp_path / "tiny", "--trainer.max_epochs=2"
    call("fit", tmp_path, *SHORT)
    (folder / "finished").unlink()
    config, summary, metrics = (folder / name for name in ("config.yaml", "summary.json", "metrics.csv"))
    before, whole = yaml.safe_load(config.read_text()), metrics.read_bytes()
    config.write_bytes(b"")
    for command, option in (("fit", "auto"), ("test", "best")):
        said = error_of(capsys, command, tmp_path, later, f"--ckpt_path={option}")
        assert f"{folder} has checkpoints, and its config.yaml is damaged or gone" in said
        assert f"write the line 'name: tiny' into {config}" in said
    config.write_text("name: tiny\n")
    summary.write_bytes(b"")
    metrics.write_bytes(whole + b"0,0,step/x\xff,1.0\n0,0,a,1.\xff\n" + b"\0" * 200_000 + b"\n0,0,step/x,0.5\n0,0,x")
    call("test", tmp_path, *SHORT)
    assert f"{summary} is damaged" in caplog.text
    assert set(json.loads(summary.read_text())) == {"test"}
    summary.write_bytes(b"")
    call("fit", tmp_path, *SHORT, later, "--ckpt_path=auto")
    assert set(json.loads(summary.read_text())) == {"model", "val"}
    assert metrics.read_bytes().startswith(whole + b"0,0,step/x,0.5\r\n") and b"\xff" not in metrics.read_bytes()
    assert {row[0] for row in read_rows(metrics)} == {"0", "1", "3"}
    after = yaml.safe_load(config.read_text())
    assert after["trainer"].pop("max_epochs") == 2 and before["trainer"].pop("max_epochs") == 1
    assert after == before


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b'{"val": \xff}', b"[1]"])
def test_damaged_json_is_as_if_it_were_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes) -> None:
    assert read_json(tmp_path / "summary.json") == {} and not caplog.text
    (tmp_path / "summary.json").write_bytes(damage)
    assert read_json(tmp_path / "summary.json") == {}
    assert f"{tmp_path / 'summary.json'} is damaged" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"\xff", b"name:", None])
def test_a_run_without_a_readable_configuration(tmp_path: Path, damage: bytes | None) -> None:
    for folder in (run_of(tmp_path, "net"), run_of(tmp_path, "net")):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/best.ckpt").touch()
    file = tmp_path / "net-2/config.yaml"
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"net-2 has checkpoints, and its config\.yaml is damaged"):
        latest_run(tmp_path, "net")
    # A new run has to know no more than that the number is taken.
    assert run_of(tmp_path, "net").name == "net-3" and latest_run(tmp_path, "net") == tmp_path / "net-3"


def test_small_files_are_on_the_disk_before_they_get_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, str]] = []
    sync, replace = os.fsync, os.replace

    def synchronise(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, "sync"))
        sync(descriptor)

    def rename(old: Path, new: Path) -> None:
        synced.append((os.stat(old).st_size, "rename"))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synchronise)
    monkeypatch.setattr(os, "replace", rename)
    replace_text(tmp_path / "a.json", "{}\n")
    assert synced[:2] == [(3, "sync"), (3, "rename")]


@pytest.mark.parametrize(("option", "why"), [("max_epochs=0", "trainer.max_epochs is 0"), ("max_time=00:00:00:00", "max_time")])
def test_a_run_that_trains_nothing_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, why: str) -> None:
    call("fit", tmp_path, *SHORT, f"--trainer.{option}")
    said = capsys.readouterr().out
    assert "Nothing was trained: " in said and why in said.partition("Nothing was trained: ")[2] and "None" not in said
    assert not list(tmp_path.iterdir())


def test_the_home_folder_in_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = run_of(tmp_path / "runs", "tiny") / "checkpoints"
    folder.mkdir()
    torch.save({"state_dict": {}, "global_step": 0, "pytorch-lightning_version": "2.6.6"}, folder / "last.ckpt")
    assert find_checkpoint(tmp_path, "tiny", "~/runs/tiny/checkpoints/last.ckpt") == (folder / "last.ckpt", folder.parent)
    for option in ("--ckpt_path=last", "--ckpt_path=~/runs/tiny/checkpoints/last.ckpt"):
        caplog.clear()
        assert "the checkpoint has the tasks []" in error_of(capsys, "test", Path("~/runs"), option)
        assert f"Checkpoint {folder / 'last.ckpt'}" in caplog.text
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'none'}: there is no such run"):
        mtl_lightning.load("~/none")
    with pytest.raises(SystemExit):
        main(["export", "--run=~/none"])
    assert f"{tmp_path / 'none'}: there is no such run" in capsys.readouterr().err
