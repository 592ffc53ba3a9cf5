"""A disk that is full or read-only while a run saves: one clear message, and what was saved before is whole."""

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl_lightning.callbacks.metrics_csv import MetricsCSV
from mtl_lightning.callbacks.whole import WholeCheckpointIO
from mtl_lightning.errors import CheckpointError, StorageError
from mtl_lightning.main import main
from mtl_lightning.storage import replace_text, replacing

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"


def fit(runs: Path, *args: str) -> None:
    main(["fit", "--config", str(CONF), "--runs", str(runs), *args])


class Full:
    """``Path.open`` on a disk that takes so many more bytes below a name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: str, room: int = 0, code: int = errno.ENOSPC) -> None:
        self.part, self.room, self.code = part, room, code
        opened = Path.open

        def wrapper(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if part not in path.name or mode[0] not in "wa":
                return opened(path, mode, *args, **kwargs)
            if code != errno.ENOSPC:
                raise OSError(code, os.strerror(code), str(path))
            file = opened(path, mode, *args, **kwargs)
            return _Limited(file, self)

        monkeypatch.setattr(Path, "open", wrapper)


class _Limited:
    def __init__(self, file: Any, disk: Full) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        self._disk.room -= len(data)
        if self._disk.room < 0:
            raise OSError(self._disk.code, os.strerror(self._disk.code))
        return self._file.write(data)

    def __enter__(self) -> "_Limited":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, "--trainer.max_epochs=1")
    run = tmp_path / "tiny"
    before = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    capsys.readouterr()
    with monkeypatch.context() as patch:
        Full(patch, ".ckpt", room=5000)
        with pytest.raises(SystemExit) as caught:
            fit(tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert caught.value.code == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    message = errors[errors.index("error: ") :]
    for part in ("No space left", ".ckpt", "MiB are free", "best.ckpt, last.ckpt", "--ckpt_path last"):
        assert part in message
    assert {path: path.read_bytes() for path in (run / "checkpoints").iterdir()} == before
    assert not list(tmp_path.rglob("*.tmp"))
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")])
def test_the_first_checkpoint_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    Full(monkeypatch, ".ckpt", code=code)
    with pytest.raises(CheckpointError, match=f"{words}.*no checkpoint was saved yet"):
        WholeCheckpointIO().save_checkpoint({"a": torch.zeros(3)}, tmp_path / "new" / "last.ckpt")
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]
    assert not list((tmp_path / "new").iterdir())


def test_predictions_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, "--trainer.max_epochs=1")
    capsys.readouterr()
    Full(monkeypatch, "predictions.csv", room=100)
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--config", str(CONF), "--runs", str(tmp_path), "--folder", str(tmp_path / "predicted")])
    errors = capsys.readouterr().err
    assert caught.value.code == 1 and "No space left" in errors and "another place with --folder" in errors


@pytest.mark.parametrize("part", ["metrics.csv", "summary.json", "summary.md", "config.yaml"])
def test_the_other_files_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    Full(monkeypatch, part)
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, "--trainer.max_epochs=1")
    assert caught.value.code == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert "No space left" in errors and "MiB are free" in errors
    assert not list(tmp_path.rglob("*.tmp"))
    if part == "config.yaml":
        assert not list(tmp_path.iterdir())
    if part == "summary.json":
        assert "run again" in errors and not list(tmp_path.rglob("*.ckpt")), "before training"
    if part == "summary.md":
        assert (tmp_path / "tiny/checkpoints/best.ckpt").exists()
        assert "run validate or test" in errors


def test_metrics_go_on_once_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = MetricsCSV(tmp_path)
    with monkeypatch.context() as patch:
        Full(patch, "metrics.csv")
        with pytest.raises(StorageError, match=r"metrics\.csv"):
            logger.log_metrics({"a": 1.0}, step=0)
    logger.log_metrics({"a": 2.0}, step=1)
    logger.finalize("success")
    assert "1,0,a,2.0" in (tmp_path / "metrics.csv").read_text()


def test_what_is_no_fault_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="other"), replacing(tmp_path / "a.txt", "") as temporary:
        temporary.write_text("half")
        raise RuntimeError("other")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    replace_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        path = disk / "last.ckpt"
        WholeCheckpointIO().save_checkpoint({"state_dict": torch.zeros(20_000)}, path)
        with pytest.raises(CheckpointError, match=r"No space left on device.*MiB are free.*last\.ckpt"):
            WholeCheckpointIO().save_checkpoint({"state_dict": torch.zeros(60_000)}, path)
        assert torch.load(path, weights_only=True)["state_dict"].shape == (20_000,)
        assert [path.name for path in disk.iterdir()] == ["last.ckpt"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
