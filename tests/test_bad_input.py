"""What is wrong is said in one message, before training, without a traceback, and nothing is lost or left behind."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtl_lightning.main import main
from tests.data.manifest import COLUMNS, write_manifest, write_rows

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "conf" / "tiny.yaml"
CROP = '[{"class_path": "torchvision.transforms.v2.RandomCrop", "init_args": {"size": [1, 2, 3]}}]'
LARGE = '[{"class_path": "torchvision.transforms.v2.RandomCrop", "init_args": {"size": 32}}]'
STOPPING = '[{"class_path": "EarlyStopping", "init_args": {"monitor": "val/nothing"}}]'
PLATEAU = '{"scheduler": {"class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau"}}'
PETS = ROOT / "tests" / "conf" / "pets_tiny.yaml"


@pytest.fixture
def pets(tmp_path: Path) -> tuple[Path, list[dict[str, str]]]:
    root = tmp_path / "pets"
    root.mkdir()
    return root, write_manifest(root, count=27)


class Failure:
    """Runs a command that must fail, and gives its message."""

    def __init__(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.runs, self.capsys = runs, capsys

    def __call__(self, *args: str, command: str = "fit", config: Path = TINY, code: int = 1, left: tuple[str, ...] = ()) -> str:
        with pytest.raises(SystemExit) as caught:
            main([command, "--config", str(config), "--runs", str(self.runs), *args])
        streams = self.capsys.readouterr()
        assert caught.value.code == code, streams.err
        assert "Traceback" not in streams.err + streams.out
        assert "epoch 1" not in streams.out, "found only after training had started"
        assert sorted(path.name for path in self.runs.glob("*")) == sorted(left)
        lines = [line for line in streams.err.splitlines() if line.strip()]
        errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        assert len(errors) == 1, streams.err
        return "\n".join(lines[errors[0] :])


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Failure:
    return Failure(tmp_path / "runs", capsys)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        pytest.param(['--model.only=["colour"]'], ["model.only", "colour", "'color'"], id="unknown task in only"),
        pytest.param(["--model.tasks.co-lor=Classification"], ["model.tasks", "co-lor"], id="no identifier"),
        pytest.param(["--model.tasks.image=Classification"], ["model.tasks", "image", "reserved"], id="reserved"),
        pytest.param(["--model.tasks.val=Classification"], ["model.tasks", "val", "reserved"], id="a split's name"),
        pytest.param(["--model.tasks.color.init_args.weight=0"], ["weight is 0", "expected > 0"], id="weight 0"),
        pytest.param(["--model.tasks.color.init_args.label_smoothing=2"], ["label_smoothing", "2"], id="smoothing"),
        pytest.param(["--model.encoder_lr=-1"], ["model.encoder_lr", "-1"], id="negative multiplier"),
        pytest.param(["--model.encoder.init_args.widths=[]"], ["widths"], id="no stage"),
        pytest.param(["--model.encoder.init_args.in_channels=1"], ["channel"], id="channels of images and encoder"),
        pytest.param(["--data.init_args.batch_size=0"], ["data.init_args.batch_size", "0"], id="batch size"),
        pytest.param(["--data.init_args.channels=2"], ["data.init_args.channels", "2"], id="channels"),
        pytest.param(["--checkpoint.monitor=val/colour/accuracy"], ["checkpoint.monitor", "val/color/accuracy"], id="monitor"),
        pytest.param(
            ["--checkpoint.monitor=val/mask/miou", "--data.init_args.hidden_eval={mask: 1}"],
            ["checkpoint.monitor", "'mask'", "no validation label"],
            id="monitor without labels",
        ),
        pytest.param(["--data.init_args.hidden={mask: 1}"], ["'mask'", "no label in the training split"], id="no training label"),
        pytest.param(["--data.init_args.rows=0"], ["train split is empty"], id="empty split"),
        pytest.param(["--model.optimizer.init_args.lr=-1"], ["model.optimizer", "-1"], id="optimizer"),
        pytest.param(
            [f"--data.init_args.train_transforms={CROP}"], ["train_transforms[0].init_args.size", "RandomCrop"], id="transform"
        ),
        pytest.param(["--data.init_args.image_size=3"], ["SmallCNN", "4 x 4", "image_size"], id="images too small"),
        pytest.param([f"--model.scheduler={PLATEAU}"], ["model.scheduler.monitor", "val/loss"], id="nothing to follow"),
        pytest.param(
            [f"--model.scheduler={PLATEAU}", "--model.scheduler.monitor=val/x/loss"],
            ["model.scheduler.monitor", "val/x/loss", "val/mask/miou"],
            id="schedule that follows nothing known",
        ),
        pytest.param(["--model.tasks.training=Classification"], ["training", "reserved"], id="a word of torch's"),
        pytest.param(["--model.tasks.color.init_args.head=FCN"], ["tasks.color", "FCN", "each pixel"], id="dense head"),
        pytest.param(["--model.tasks.mask.init_args.head=Linear"], ["tasks.mask", "Linear", "each image"], id="head of images"),
        pytest.param(["--trainer.strategy=nonsense"], ["nonsense"], id="no such strategy"),
        pytest.param(["--trainer.val_check_interval=1000"], ["val_check_interval"], id="Lightning's own checks"),
        pytest.param([f"--trainer.callbacks={STOPPING}"], ["EarlyStopping.monitor", "val/nothing"], id="early stopping"),
        pytest.param(["--checkpoint.monitor=val/loss", "--checkpoint.mode=max"], ["checkpoint.mode", "min"], id="the worst"),
        pytest.param([f"--data.init_args.train_transforms={LARGE}"], ["RandomCrop", "16x16", "train-"], id="crop too large"),
        pytest.param(["--trainer.overfit_batches=2"], ["overfit_batches", "limit_train_batches"], id="overfit"),
        pytest.param(
            ["--trainer.limit_val_batches=0", f'--model.scheduler={PLATEAU[:-1]}, "monitor": "val/loss"}}'],
            ["model.scheduler.monitor", "limit_val_batches"],
            id="a schedule that follows what is never validated",
        ),
        pytest.param(
            ["--data.init_args.val_rows=0", f"--trainer.callbacks={STOPPING.replace('nothing', 'score')}"],
            ["EarlyStopping.monitor", "no main task has a validation label"],
            id="early stopping without validation",
        ),
        pytest.param(["--name=a/b"], ["name", "a/b"], id="run name"),
        pytest.param(["--ckpt_path=nowhere.ckpt"], ["nowhere.ckpt", "no such"], id="no checkpoint"),
        pytest.param(
            [f"--model.tasks.{task}.init_args.auxiliary=true" for task in ("color", "level", "mask")],
            ["every task is auxiliary"],
            id="all auxiliary",
        ),
    ],
)
def test_settings(fails: Failure, args: list[str], words: list[str]) -> None:
    message = fails(*args)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("args", "words"),
    [
        pytest.param(["--model.tasks.color.class_path=Clasification"], ["Clasification"], id="unknown class"),
        pytest.param(["--model.encoder.init_args.width=[4]"], ["width"], id="unknown argument"),
        pytest.param(["--trainer.epochs=1"], ["--trainer.epochs"], id="unknown option"),
        pytest.param(["--data.init_args.batch_size=many"], ["batch_size", "many"], id="wrong type"),
        pytest.param(["--checkpoint.mode=up"], ["mode", "up"], id="wrong choice"),
        pytest.param(["--config=nowhere.yaml"], ["nowhere.yaml"], id="no config"),
    ],
)
def test_arguments_that_cannot_be_parsed(fails: Failure, args: list[str], words: list[str]) -> None:
    message = fails(*args, code=2)
    assert all(word in message for word in words), message


def test_an_overlay_that_drops_tasks(fails: Failure, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {tasks: {color: {class_path: Classification}}}\n")
    message = fails("--config", str(overlay))
    assert all(word in message for word in ("overlay.yaml", "drops level, mask", "--model.only"))


def change(root: Path, rows: list[dict[str, str]], row: int, **cells: str) -> None:
    rows[row].update(cells)
    write_rows(root / "all.csv", rows)


def columns(**changes: Any) -> str:
    return f"--data.init_args.columns={json.dumps({**{key: COLUMNS[key] for key in ('head', 'mask')}, **changes})}"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        pytest.param([columns(breed="race")], ["race", "breed", "image, split, breed"], id="unknown column"),
        pytest.param([columns(maask="mask")], ["columns.maask", "no such task", "breed, mask, head"], id="unknown task"),
        pytest.param(
            ["--data.init_args.split.val_fraction=0.01"],
            ["no row is in the val split", "data.init_args.split.val_fraction"],
            id="no validation row",
        ),
        pytest.param(["--data.init_args.image=photo"], ["data.init_args.image", "photo"], id="unknown image column"),
        pytest.param(["--data.init_args.manifest=none.csv"], ["none.csv"], id="no manifest"),
        pytest.param(["--data.init_args.root=nowhere"], ["nowhere"], id="no root"),
        pytest.param(["--data.init_args.split.column=fold"], ["fold"], id="unknown split column"),
        pytest.param(
            ["--model.tasks.breed.init_args.classes=[beagle, bengal]"],
            ["all.csv", "row 2", "'breed'", "abyssinian", "beagle"],
            id="label outside its classes",
        ),
        pytest.param(['--model.tasks.mask.init_args.classes=["a", "b"]'], ["mask", "pet"], id="mask values and classes"),
    ],
)
def test_manifest_settings(fails: Failure, pets: Any, args: list[str], words: list[str]) -> None:
    message = fails(f"--data.init_args.root={pets[0]}", *args, config=PETS)
    assert all(word in message for word in words), message


def test_faults_in_a_manifest_are_all_told_with_file_and_row(fails: Failure, pets: Any) -> None:
    root, rows = pets
    rows[2]["head_xmin"] = "nan"
    rows[3]["image"] = "images/gone.jpg"
    (root / rows[4]["image"]).write_bytes(b"no picture")
    height, width = np.asarray(Image.open(root / rows[5]["mask"])).shape
    Image.fromarray(np.ones((height + 1, width), dtype=np.uint8)).save(root / rows[5]["mask"])
    write_rows(root / "all.csv", rows)
    message = fails(f"--data.init_args.root={root}", config=PETS)
    for line, words in {
        4: ["head", "nan"],
        5: ["images/gone.jpg"],
        6: [rows[4]["image"]],
        7: ["mask", str(height + 1)],
    }.items():
        told = [text for text in message.splitlines() if f"row {line}" in text]
        assert told and all(word in " ".join(told) for word in words), (line, message)
    assert "on_error" in message


def test_bad_rows_can_be_skipped_and_are_listed(pets: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, rows = pets
    change(root, rows, 3, image="images/gone.jpg")
    with caplog.at_level("INFO"):
        main(["fit", "--config", str(PETS), "--runs", str(tmp_path / "runs"), f"--data.init_args.root={root}",
              "--data.init_args.on_error=skip"])  # fmt: skip
    assert "1 bad row" in caplog.text
    assert "row 5" in caplog.text
    assert (tmp_path / "runs/pets_tiny/summary.md").exists()


def test_what_is_skipped_is_listed_also_when_it_fails_later(pets: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, rows = pets
    common = ["fit", "--config", str(PETS), f"--data.init_args.root={root}", "--data.init_args.on_error=skip"]
    for row in rows[:3]:
        (root / row["image"]).write_bytes((root / row["image"]).read_bytes()[:300])
    main([*common, "--runs", str(tmp_path / "found")])
    listing = (tmp_path / "found/pets_tiny/left_out_train_val.txt").read_text()
    assert all(row["image"] in listing for row in rows[:3])
    with pytest.raises(SystemExit):
        main([*common, "--runs", str(tmp_path / "found"), "--checkpoint.monitor=val/breed/typo"])
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["pets_tiny"]
    caplog.clear()
    main([*common, "--runs", str(tmp_path / "later"), "--data.init_args.verify=0"])
    assert all(row["image"] in caplog.text for row in rows[:3])
    assert caplog.text.count("a black picture without labels takes its place") == 3


def test_an_empty_validation_split_cannot_be_validated(fails: Failure, capsys: pytest.CaptureFixture[str]) -> None:
    runs = fails.runs
    main(["fit", "--config", str(TINY), "--runs", str(runs), "--trainer.max_epochs=1"])
    capsys.readouterr()
    message = fails("--data.init_args.hidden_eval={}", "--data.init_args.val_rows=0", command="validate", left=("tiny",))
    assert "val split is empty" in message


def test_two_rows_for_one_picture(fails: Failure, pets: Any) -> None:
    root, rows = pets
    change(root, rows, 3, image=rows[0]["image"])
    message = fails(f"--data.init_args.root={root}", config=PETS)
    assert all(word in message for word in ("more than once", rows[0]["image"], "row 5"))


def test_a_file_that_breaks_during_training_is_named(pets: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, rows = pets
    (root / rows[0]["image"]).write_bytes(b"no picture")
    for workers in (0, 1):
        with pytest.raises(SystemExit) as caught:
            main(["fit", "--config", str(PETS), "--runs", str(tmp_path / "runs"), f"--data.init_args.root={root}",
                  "--data.init_args.verify=0", f"--data.init_args.num_workers={workers}"])  # fmt: skip
        error = capsys.readouterr().err
        assert caught.value.code == 1
        assert "Traceback" not in error
        assert rows[0]["image"] in error and "row 2" in error


def test_a_loss_that_is_no_number_names_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(TINY), "--runs", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(TINY), "--runs", str(tmp_path), "--ckpt_path=last", "--trainer.max_epochs=9",
              "--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=1e30", "--name=boom"])  # fmt: skip
    assert caught.value.code == 1
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(TINY), "--runs", str(tmp_path), "--model.optimizer=torch.optim.SGD",
              "--model.optimizer.init_args.lr=1e30", "--trainer.max_epochs=9", "--name=boom"])  # fmt: skip
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert "is not a finite number" in error and "Traceback" not in error


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    main(["fit", "--config", str(TINY), "--runs", str(folder), "--trainer.max_epochs=1"])
    return folder / "tiny" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        pytest.param(['--model.only=["mask", "level"]'], ["color", "the checkpoint has the tasks"], id="other tasks"),
        pytest.param(
            ["--model.encoder.init_args.widths=[8, 12]"],
            ["model.architecture", "has shape (8, 8, 3, 3), expected (12, 8, 3, 3)"],
            id="other shapes",
        ),
        pytest.param(
            ["--model.architecture=SoftSharing"],
            ["it was trained with architecture HardSharing, which is SoftSharing now", "config.yaml of its run folder"],
            id="another architecture",
        ),
    ],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_checkpoints_of_something_else(fails: Failure, trained: Path, command: str, args: list[str], words: list[str]) -> None:
    message = fails(f"--ckpt_path={trained}", *args, command=command)
    assert all(word in message for word in words), message


def test_a_weighting_matters_where_training_goes_on(fails: Failure, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(f"--ckpt_path={trained}", "--model.weighting=UW")
    assert "missing weighting" in message
    optimizer = fails(f"--ckpt_path={trained}", "--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.1")
    assert "model.optimizer is torch.optim.sgd.SGD" in optimizer and "AdamW" in optimizer
    main(["test", "--config", str(TINY), f"--ckpt_path={trained}", "--model.weighting=UW"])
    terms = "--model.tasks.mask.init_args.loss=ce+dice"
    main(["test", "--config", str(TINY), f"--ckpt_path={trained}", terms])


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/mtl_evil",)


def test_broken_and_hostile_checkpoints(fails: Failure, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "half.ckpt").write_bytes(trained.read_bytes()[:2000])
    assert "half.ckpt" in fails(f"--ckpt_path={tmp_path}/half.ckpt", command="test")
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": Evil()}))
    message = fails(f"--ckpt_path={tmp_path}/evil.ckpt", command="test")
    assert "evil.ckpt" in message and "safely" in message
    torch.save({"state_dict": Evil()}, tmp_path / "evil2.ckpt")
    assert "safely" in fails(f"--ckpt_path={tmp_path}/evil2.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    assert "list.ckpt" in fails(f"--ckpt_path={tmp_path}/list.ckpt")
    assert not Path("/tmp/mtl_evil").exists()


def test_an_error_on_resume_loses_nothing(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained.parents[1], tmp_path / "tiny")
    before = {path: path.read_bytes() for path in (tmp_path / "tiny").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "fit",
                "--config",
                str(TINY),
                "--runs",
                str(tmp_path),
                "--ckpt_path=last",
                "--model.encoder.init_args.widths=[8, 12]",
            ]
        )
    assert caught.value.code == 1
    assert "has shape" in capsys.readouterr().err
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_the_process_ends_with_the_code_and_one_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mtl_lightning", "fit", "--config", str(TINY), "--runs", str(tmp_path)]
    done = subprocess.run([*command, '--model.only=["colour"]'], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: model.only names ['colour']")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
