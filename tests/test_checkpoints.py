"""Checkpoints are whole, the one before is kept, damage is seen and named, and what is hostile is refused."""

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mtl_lightning
from mtl_lightning.callbacks.whole import WholeCheckpointIO
from mtl_lightning.checkpoint import load_checkpoint
from mtl_lightning.errors import CheckpointError
from mtl_lightning.main import main
from mtl_lightning.runs import newest_whole
from tests.conftest import without_pictures

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"


def call(command: str, runs: Path, *args: str) -> None:
    main([command, "--config", str(CONF), "--runs", str(runs), *args])


def state(number: int) -> dict[str, Any]:
    return {"state_dict": {"w": torch.arange(300.0) + number}, "global_step": number, "pytorch-lightning_version": "2.6.0"}


def step(path: Path) -> int:
    return int(load_checkpoint(path)["global_step"])


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0x10
    path.write_bytes(data)


def no_links(*_: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    writer = WholeCheckpointIO(previous=True)
    for number in range(1, 4):
        writer.save_checkpoint(state(number), tmp_path / "last.ckpt")
        writer.save_checkpoint(state(number), tmp_path / "best.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert (step(tmp_path / "last.ckpt"), step(tmp_path / "previous.ckpt")) == (3, 2)
    WholeCheckpointIO().save_checkpoint(state(4), tmp_path / "last.ckpt")
    assert (step(tmp_path / "last.ckpt"), step(tmp_path / "previous.ckpt")) == (4, 2)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("call", range(1, 4))
def test_a_kill_between_any_two_renames_leaves_one_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, call: int
) -> None:
    run, calls = tmp_path, []
    last = run / "checkpoints/last.ckpt"
    writer = WholeCheckpointIO(previous=True)
    for number in (1, 2):
        writer.save_checkpoint(state(number), last)

    def killing(function: Any) -> Any:
        def wrapper(*args: Any) -> Any:
            calls.append(function)
            if len(calls) == call:
                raise Killed
            return function(*args)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killing(os.link) if links else no_links)
        patch.setattr(os, "replace", killing(os.replace))
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # who is killed does not tidy up
        if call <= 2 + links:
            with pytest.raises(Killed):
                writer.save_checkpoint(state(3), last)
    assert not links or last.exists()
    assert step(newest_whole(run)) == 2
    WholeCheckpointIO(previous=True).save_checkpoint(state(4), last)
    assert step(newest_whole(run)) == 4
    assert not list(run.rglob("previous.ckpt.tmp"))


def test_a_disk_that_fills_up_between_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = tmp_path / "checkpoints/last.ckpt"
    writer = WholeCheckpointIO(previous=True)
    for number in (1, 2):
        writer.save_checkpoint(state(number), last)
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "last.ckpt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    for link in (os.link, no_links):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            patch.setattr(os, "link", link)
            with pytest.raises(CheckpointError, match="No space left"):
                writer.save_checkpoint(state(3), last)
        assert step(newest_whole(tmp_path)) == 2
        assert not list(tmp_path.rglob("*.tmp"))


def test_a_damaged_one_does_not_replace_the_good_one_before(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    for number in (1, 2):
        WholeCheckpointIO(previous=True).save_checkpoint(state(number), last)
    flip(last)
    WholeCheckpointIO(previous=True).save_checkpoint(state(3), last)
    assert (step(last), step(tmp_path / "previous.ckpt")) == (3, 1)


def test_every_damage_is_seen(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.ckpt", tmp_path / "bad.ckpt"
    WholeCheckpointIO().save_checkpoint(state(5), good)
    data, dice = good.read_bytes(), random.Random(0)
    missed = 0
    for place in dice.sample(range(len(data)), 150):
        changed = bytearray(data)
        changed[place] ^= 1 << dice.randrange(8)
        bad.write_bytes(changed)
        try:
            found = load_checkpoint(bad)
        except CheckpointError as error:
            assert "bad.ckpt" in str(error) and "good.ckpt beside it can be used" in str(error)
        else:
            missed += 1
            assert torch.equal(found["state_dict"]["w"], state(5)["state_dict"]["w"]) and found["global_step"] == 5
    assert missed < 100, "only what nobody reads (padding, dates) may go unseen"
    for length in (0, 1, 100, len(data) // 2, len(data) - 100, len(data) - 1):
        bad.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
            load_checkpoint(bad)


class Foreign:
    pass


def test_a_foreign_class_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(2)}, "more": Foreign()}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match=r"foreign\.ckpt: .* safely \(it would run tests\.test_checkpoints\.Foreign"):
        load_checkpoint(tmp_path / "foreign.ckpt")


@pytest.mark.parametrize("held", [{"w": 1}, {"state_dict": {}}, {"state_dict": {}, "global_step": 3}, [1]])
def test_files_of_others_are_no_checkpoints(tmp_path: Path, held: Any) -> None:
    torch.save(held, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other\.ckpt: holds no training state \(no '\w"):
        load_checkpoint(tmp_path / "other.ckpt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of six steps: ``last`` after 12, ``previous`` after 11."""
    folder = tmp_path_factory.mktemp("trained")
    with without_pictures():
        call("fit", folder, "--checkpoint.every_n_steps=1")
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def test_last_skips_a_damaged_one_and_says_so(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "tiny/checkpoints"
    flip(folder / "last.ckpt")
    (folder / "best.ckpt.tmp").write_bytes(b"half")
    call("fit", runs, "--ckpt_path=last", "--trainer.max_epochs=3")
    warning = next(line for line in capsys.readouterr().err.splitlines() if "WARNING" in line)
    for part in ("last.ckpt: is damaged", "previous.ckpt of step 11", "about 1 steps are trained again"):
        assert part in warning
    assert step(folder / "last.ckpt") == 18 and step(folder / "previous.ckpt") == 12
    assert not list(runs.rglob("*.tmp"))


def test_a_damaged_one_that_is_named_is_an_error_with_another(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "tiny/checkpoints"
    flip(folder / "best.ckpt")
    (folder / "previous.ckpt").write_bytes((folder / "previous.ckpt").read_bytes()[:3000])
    for command, option in (("test", []), ("predict", ["--ckpt_path=best"]), ("fit", [f"--ckpt_path={folder}/best.ckpt"])):
        with pytest.raises(SystemExit) as caught:
            call(command, runs, *option)
        assert caught.value.code == 1
        error = capsys.readouterr().err
        assert "best.ckpt: is damaged" in error and f"{folder}/last.ckpt beside it can be used" in error
    with pytest.raises(CheckpointError, match=r"last\.ckpt beside it can be used"):
        mtl_lightning.load(runs / "tiny")
    with pytest.raises(SystemExit):
        main(["export", "--run", str(runs / "tiny"), "--output", str(runs / "net.pt2")])
    assert "best.ckpt: is damaged" in capsys.readouterr().err
    flip(folder / "last.ckpt")
    with pytest.raises(SystemExit):
        call("validate", runs, "--ckpt_path=last")
    error = capsys.readouterr().err
    assert "last.ckpt" in error and "previous.ckpt" in error and "use an earlier checkpoint" in error


def test_only_the_previous_one_is_left(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "tiny/checkpoints"
    (folder / "last.ckpt").unlink()
    call("validate", runs, "--ckpt_path=last")
    assert "last.ckpt: is not there; going on from the one before it" in capsys.readouterr().err
    (folder / "best.ckpt").unlink()
    mtl_lightning.load(runs / "tiny")


def test_auto_goes_on_where_there_is_something_to_go_on_with(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    auto = ("fit", runs, "--ckpt_path=auto", "--trainer.max_epochs=1")
    call(*auto, "--name=other")
    assert "auto: no run named 'other'" in capsys.readouterr().out
    call(*auto)
    assert "tiny is finished: a new run starts" in capsys.readouterr().out
    assert step(runs / "tiny-2/checkpoints/last.ckpt") == 6
    (runs / "tiny-2/finished").unlink()
    call("fit", runs, "--ckpt_path=auto", "--trainer.max_epochs=2")
    assert "tiny-2 goes on" in capsys.readouterr().out
    assert step(runs / "tiny-2/checkpoints/last.ckpt") == 12 and (runs / "tiny-2/finished").exists()
    for file in (runs / "tiny-2/checkpoints").iterdir():
        file.unlink()
    call(*auto)
    assert "tiny-2 has no checkpoint: a new run starts" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call("test", runs, "--ckpt_path=auto")
    assert "--ckpt_path auto is for fit" in capsys.readouterr().err


def test_saves_by_the_clock(tmp_path: Path) -> None:
    call("fit", tmp_path, "--checkpoint.every_minutes=0.000001", "--trainer.max_steps=4", "--trainer.limit_val_batches=0")
    folder = tmp_path / "tiny/checkpoints"
    assert (step(folder / "last.ckpt"), step(folder / "previous.ckpt")) == (4, 3)


def test_no_previous_one_where_none_is_wanted(tmp_path: Path) -> None:
    call("fit", tmp_path, "--checkpoint.previous=false", "--trainer.limit_val_batches=0")
    assert [path.name for path in (tmp_path / "tiny/checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    "option", ["every_n_steps=0", "every_n_steps=-3", "every_minutes=0", "every_minutes=-1", "every_minutes=.nan"]
)
def test_spans_between_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as caught:
        call("fit", tmp_path, f"--checkpoint.{option}")
    assert caught.value.code in (1, 2)
    error = capsys.readouterr().err
    assert f"checkpoint.{option.partition('=')[0]}" in error and "expected" in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())
