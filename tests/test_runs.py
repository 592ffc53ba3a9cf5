"""Run folders: which one is the latest, and what is wrong with one that is damaged."""

from pathlib import Path

import pytest

from mtl_lightning.main import main
from mtl_lightning.runs import choose_run, discard, keep_config, latest_run, new_folder

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"


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
