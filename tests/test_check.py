"""``check``: everything that is wrong in one pass, nothing trained, nothing else touched."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from mtl_lightning.analysis.check import page, run
from mtl_lightning.analysis.check.tallies import ClassTally, DepthTally, MaskTally, MultiLabelTally, NormalsTally, NumberTally
from mtl_lightning.main import main
from mtl_lightning.runs import latest_run
from mtl_lightning.tasks import Classification, Depth, MultiLabel, Regression, SemanticSegmentation, SurfaceNormals
from tests.data.manifest import write_manifest, write_rows

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "conf" / "tiny.yaml"
PETS = ROOT / "tests" / "conf" / "pets_tiny.yaml"
CLASSES = "--model.tasks.breed.init_args.classes=[abyssinian, beagle, bengal]"
FLIP = "--data.init_args.train_transforms=[{class_path: torchvision.transforms.v2.RandomHorizontalFlip}]"


def call(command: str, runs: Path, *args: str, config: Path = TINY) -> None:
    few = ["--pictures=2"] if command == "check" else []
    main([command, "--config", str(config), "--runs", str(runs), *few, *args])


class Seen(Exception):
    """The first batch is known."""


class FirstBatch(Callback):
    """Keeps the first batch that a fit trains on."""

    kept: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        FirstBatch.kept = batch
        raise Seen


def test_check_reports_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets = []
    real = run.contact_sheet

    def spy(batches: Any, *rest: Any) -> int:
        sheets.append(list(batches))
        return real(batches, *rest)

    monkeypatch.setattr(run, "contact_sheet", spy)
    call("check", tmp_path, FLIP, "--pictures=10", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-check"]
    folder = tmp_path / "tiny-check"
    assert {path.name for path in folder.iterdir()} == {"report.md", "labels.png", "contact_sheet.png", "model.png"}
    text = (folder / "report.md").read_text()
    assert "90 rows were read, no fault was found" in text
    assert "| color | 29 of 48 (60 %) | 21 of 21 (100 %) | 21 of 21 (100 %) |" in text
    assert "| all | 1,023 | 1,023 |" in text
    assert re.search(r"A training step of 8 rows on CPU takes \d+ ms \(median of 4\)", text)
    sizes = dict(re.findall(r"\| ([a-z' ]+) \| (\d+\.\d) \|", text))
    assert sizes.keys() >= {"weights", "gradients", "optimizer's state", "kept for the backward pass", "batch"}
    assert float(sizes["kept for the backward pass"]) > 0
    assert "no fault was found" in capsys.readouterr().out
    with pytest.raises(Seen):
        call("fit", tmp_path, FLIP, "--trainer.callbacks+=tests.test_check.FirstBatch")
    drawn, trained = sheets[0][0], FirstBatch.kept
    assert drawn.ids == trained.ids
    assert torch.equal(drawn.inputs["image"], trained.inputs["image"])
    assert torch.equal(drawn.targets["mask"], trained.targets["mask"])


def test_check_leaves_runs_alone(tmp_path: Path) -> None:
    run_folder = tmp_path / "tiny"
    (run_folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt"):
        (run_folder / name).write_text("name: tiny")
    (tmp_path / "tiny-check").mkdir()
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    call("check", tmp_path, "--name=tiny")
    assert {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "tiny-check", "tiny-check-2"}
    assert not list((tmp_path / "tiny-check").iterdir())
    assert latest_run(tmp_path, "tiny") == run_folder


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(
            [
                "--data.init_args.batch_size=48",
                "--model.scheduler.scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",
                "--model.scheduler.monitor=val/mask/miou",
            ],
            id="a single batch, plateau",
        ),
        pytest.param(
            [
                "--data.init_args.sizes=[9, 16]",
                "--trainer.precision=bf16-mixed",
                "--model.weighting=UW",
                "--model.only=[level]",
                "--trainer.accumulate_grad_batches=2",
            ],
            id="padding, bf16, one task, accumulation",
        ),
    ],
)
def test_other_settings(tmp_path: Path, args: list[str]) -> None:
    call("check", tmp_path, *args)
    text = (tmp_path / "tiny-check/report.md").read_text()
    assert "peak, measured" in text
    assert ("a first step, slower" in text) == ("--data.init_args.batch_size=48" in args)
    assert ("pictures differ in size" in text) == ("--data.init_args.sizes=[9, 16]" in args)


@pytest.fixture
def pets(tmp_path: Path) -> tuple[Path, list[dict[str, str]]]:
    root = tmp_path / "pets"
    root.mkdir()
    return root, write_manifest(root, count=36)


def spoil(root: Path, rows: list[dict[str, str]]) -> dict[int, list[str]]:
    """Make rows faulty; gives the words that each line of the manifest is to be reported with, a fault each."""
    rows[1]["breed"], rows[1]["image"] = "unicorn", "images/gone.jpg"
    (root / rows[2]["image"]).write_bytes(b"no picture")
    (root / rows[2]["mask"]).write_bytes(b"no mask")
    height, width = np.asarray(Image.open(root / rows[3]["mask"])).shape
    Image.fromarray(np.ones((height + 1, width), dtype=np.uint8)).save(root / rows[3]["mask"])
    Image.fromarray(np.full(np.asarray(Image.open(root / rows[4]["mask"])).shape, 9, dtype=np.uint8)).save(root / rows[4]["mask"])
    rows[5]["head_xmin"] = "nan"
    rows[9].update(head_xmin="1", head_xmax="500")
    rows[10]["image"] = ""
    return {
        3: ["'unicorn' is not one of the classes", "there is no file images/gone.jpg"],
        4: [f"{rows[2]['image']} cannot be read", f"{rows[2]['mask']} cannot be read"],
        5: [f"{height + 1} high"],
        6: ["has the values 9"],
        7: ["'nan' is not a finite number"],
        11: ["leaves its picture"],
        12: ["there is no picture"],
    }


def faults(folder: Path) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for line in (folder / "faults.txt").read_text().splitlines():
        match = re.fullmatch(r"all\.csv, row (\d+) \(.*?\): (.*)", line)
        assert match, line
        found.setdefault(int(match.group(1)), []).append(match.group(2))
    return found


def test_every_fault_is_told_at_once(tmp_path: Path, pets: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root, rows = pets
    expected = spoil(root, rows)
    rows[12]["split"] = "tset"
    rows[14] = dict(rows[13])
    expected |= {14: ["'tset' is none of train, val, test"], 16: ["is also in all.csv, row 15"]}
    write_rows(root / "all.csv", rows)
    with pytest.raises(SystemExit) as caught:
        call("check", tmp_path / "runs", f"--data.init_args.root={root}", CLASSES, "--shown=3", config=PETS)
    assert caught.value.code == 1
    streams = capsys.readouterr()
    assert "Traceback" not in streams.err
    assert "stops a run in any case" in streams.err
    assert "… and 8 more in" in streams.out
    folder = tmp_path / "runs/pets_tiny-check"
    found = faults(folder)
    assert found.keys() == expected.keys()
    for row, words in expected.items():
        assert len(found[row]) == len(words), (row, found[row])
        assert all(any(word in told for told in found[row]) for word in words), (row, found[row])
    text = (folder / "report.md").read_text()
    assert "36 rows were read, 9 of them have 11 faults: a run would stop at them" in text
    assert (folder / "contact_sheet.png").exists(), "drawn from the rows without a fault"
    assert "A training step of 4 rows" in text


def test_faults_that_are_skipped_are_told_and_no_failure(tmp_path: Path, pets: Any) -> None:
    root, rows = pets
    expected = spoil(root, rows)
    write_rows(root / "all.csv", rows)
    call("check", tmp_path, f"--data.init_args.root={root}", CLASSES, "--data.init_args.on_error=skip", config=PETS)
    folder = tmp_path / "pets_tiny-check"
    assert faults(folder).keys() == expected.keys()
    assert "they are left out" in (folder / "report.md").read_text()


def test_a_step_that_cannot_be_taken_is_told_with_all_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        call(
            "check",
            tmp_path,
            "--model.optimizer.init_args.lr=1.0e30",
            "--trainer.precision=32-true",
            "--model.optimizer=torch.optim.SGD",
        )
    assert caught.value.code == 1
    assert "is not a finite number" in capsys.readouterr().err
    text = (tmp_path / "tiny-check/report.md").read_text()
    assert "What stops a run" in text and "contact_sheet.png" in text


def test_a_task_without_a_training_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        call("check", tmp_path, "--data.init_args.hidden={mask: 1.0}")
    assert caught.value.code == 1
    assert "task 'mask' has no label in the training split" in capsys.readouterr().err
    assert "| mask | **none** of 48 |" in (tmp_path / "tiny-check/report.md").read_text()


def test_what_labels_are_counted_as() -> None:
    classes = ClassTally(Classification(classes=["a", "b", "A "]))
    for index in (0, 0, 1):
        classes.add(torch.tensor(index))
    assert classes.shares().counts.tolist() == [2, 1, 0]
    several = MultiLabelTally(MultiLabel(labels=["x", "y"]))
    several.add(torch.tensor([1.0, float("nan")]))
    several.add(torch.tensor([0.0, 1.0]))
    assert (several.shares().counts.tolist(), several.shares().known.tolist()) == ([1, 1], [2, 1])
    mask = MaskTally(SemanticSegmentation(classes=["a", "b"]))
    mask.add(torch.tensor([[0, 0], [1, -1]]))
    mask.add(torch.tensor([[-1, -1], [-1, -1]]))
    assert (mask.shares().counts.tolist(), mask.shares().rows.tolist()) == ([2, 1], [1, 1])
    assert (mask.empty, mask.unlabelled_share) == (1, 5 / 8)
    numbers = NumberTally(Regression(names=["u", "v"]))
    for pair in ([1.0, 5.0], [3.0, float("nan")]):
        numbers.add(torch.tensor(pair))
    assert [(spread.name, spread.low, spread.high, len(spread.values)) for spread in numbers.spreads()] == [
        ("u", 1.0, 3.0, 2),
        ("v", 5.0, 5.0, 1),
    ]
    depth = DepthTally(Depth())
    depth.add(torch.tensor([[[0.0, 2.0], [4.0, 8.0]]]))
    assert (depth.spreads()[0].low, depth.spreads()[0].high, depth.unlabelled_share) == (2.0, 8.0, 0.25)
    normals = NormalsTally(SurfaceNormals())
    normals.add(torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1) * torch.tensor([[1.0, 0.0]]))
    assert normals.unlabelled_share == 0.5


def test_what_is_worth_a_look() -> None:
    task = Classification(classes=["cat", "Cat ", "dog"])
    tally = ClassTally(task)
    for _ in range(20):
        tally.add(torch.tensor(0))
    tally.add(torch.tensor(2))
    found = run.Survey(tallies={"x": {"train": tally, "val": ClassTally(task)}})
    notes = " / ".join(page.notes(found, {"x": task}, True))
    for words in (
        "no label in the val split",
        "no training label of Cat ",
        "one training row alone is dog",
        "95 % of the training labels are cat",
        "'cat' and 'Cat '",
    ):
        assert words in notes
