"""Every command and every piece of Python in the README and the docs runs, on little data."""

import json
import math
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from mtl_lightning import architectures, weighting
from mtl_lightning.architectures import Architecture
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.main import main
from tests.data.clinc150 import write_clinc150, write_texts
from tests.data.folders import write_folders
from tests.data.manifest import write_manifest
from tests.data.office import write_office

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCENES = ["--data.init_args.train_size=32", "--data.init_args.val_size=16", "--data.init_args.test_size=16",
          "--data.init_args.num_workers=0"]  # fmt: skip
SMALL = {
    "configs/scenes.yaml": SCENES,
    "configs/scenes_gradients.yaml": SCENES,
    "configs/kinds.yaml": SCENES,
    "configs/imbalanced.yaml": SCENES,
    "configs/pets.yaml": ["--data.init_args.num_workers=0"],
    "configs/scenes_wandb.yaml": SCENES,
    "configs/clinc150.yaml": ["--data.init_args.batch_size=16", "--data.init_args.num_workers=0"],
    "configs/office.yaml": [
        "--data.init_args.num_workers=0",
        "--data.init_args.batch_size=12",
        "--data.init_args.image_size=32",
        "--model.encoder.init_args.stages=2",
    ],
    "configs/folder.yaml": ["--data.init_args.num_workers=0", "--data.init_args.batch_size=8", "--data.init_args.image_size=32"],
}
"""What makes a command's data small, placed behind its config."""
QUICK = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
SLOW = ("--trainer.strategy ddp", "WandbLogger", "scenes_wandb", "ResNet")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]


def test_there_are_ten_things() -> None:
    numbers = re.findall(r"^\*\*(\d+)\. ", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 11)]
    assert len(commands()) >= 14


def arguments(command: str) -> list[str]:
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "mtl_lightning"], command
    if "--config" not in words:
        return words[3:]
    config = words[words.index("--config") + 1]
    place = words.index("--config") + 2
    small = SMALL.get(config, ["--data.init_args.num_workers=0"])
    quick = QUICK if words[3] == "fit" else QUICK[1:]
    if "last" in words:
        quick = ["--trainer.max_epochs=2", QUICK[1]]
    return [*words[3:place], *small, *words[place:], *(option for option in quick)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configs, the pets and the examples of the docs."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "PATH" / "TO" / "pets").mkdir(parents=True)
    write_manifest(folder / "PATH" / "TO" / "pets", count=36, labelled=0.9)
    write_folders(folder / "PATH" / "TO" / "pictures", 30)
    write_clinc150(folder / "PATH" / "TO" / "clinc150")
    write_texts(folder / "PATH" / "TO" / "texts")
    (folder / "requests.txt").write_text("book a flight\nfreeze my account\n", encoding="utf-8")
    write_office(folder / "PATH" / "TO" / "office-31", lists=True)
    write_folders(folder / "PATH" / "TO" / "more", 20, classes=("dark", "bright"), first=100)
    (folder / "PATH/TO/pets/partial.csv").rename(folder / "PATH/TO/pets/pets_partial.csv")
    for page in PAGES:
        for block in blocks(page, "python"):
            (folder / re.match(r"# (\w+\.py)\n", block).group(1)).write_text(block, encoding="utf-8")  # type: ignore[union-attr]
        for block in blocks(page, "yaml"):
            if name := re.match(r"# (\w+\.yaml)\n", block):
                (folder / name.group(1)).write_text(block, encoding="utf-8")
    return folder


@pytest.mark.usefixtures("no_pictures")
def test_the_commands_one_after_the_other(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    for command in commands():
        if not any(part in command for part in SLOW):
            monkeypatch.delenv("MTL_LIGHTNING_RUN", raising=False)
            main(arguments(command))
    for run in ("scenes", "pets", "scenes-uw", "depth-alone", "noise", "scenes-nash", "scenes-combined", "even-norms"):
        assert json.loads((place / "runs" / run / "summary.json").read_text())["val"]["score"] is not None, run
    for run in ("scenes-nash", "scenes-watched", "scenes_gradients", "even-norms"):
        assert (place / "runs" / run / "gradients.png").exists(), run
    for picture in ("model.png", "sharing.png"):
        assert (place / "runs/scenes-mmoe" / picture).exists(), picture
    runpy.run_path(str(place / "deploy.py"))
    assert (place / "predicted/predictions.csv").exists()
    assert (place / "pets-predicted/contact_sheet.png").exists()
    assert (place / "pets.pt2").exists()
    runpy.run_path(str(place / "ask.py"))
    assert (place / "answers/predictions.csv").exists() and (place / "clinc150.pt2.tokenizer.json").exists()


@pytest.mark.parametrize("part", [pytest.param(p, marks=pytest.mark.slow) if p == "scenes_wandb" else p for p in SLOW])
def test_the_commands_that_take_longer(place: Path, part: str) -> None:
    if part in ("WandbLogger", "scenes_wandb"):
        pytest.importorskip("wandb")
    found = [command for command in commands() if part in command]
    assert found
    for command in found:
        done = subprocess.run(
            [sys.executable, "-m", "mtl_lightning", *arguments(command), f"--runs=runs-{len(part)}"],
            capture_output=True, text=True, cwd=place, timeout=300, check=False,
            env={**__import__("os").environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_python_example(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(place / "use.py"))
    assert "{'kind': (4, 2), 'depth': (4, 1, 64, 48)}" in capsys.readouterr().out


def test_the_network_of_the_docs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(place / "my_network.py"))
    assert "| **all** |" in capsys.readouterr().out


def test_the_head_of_the_docs_does_not_see_padding(place: Path) -> None:
    torch.manual_seed(0)
    head = runpy.run_path(str(place / "my_heads.py"))["MeanAndMax"]([FeatureSpec(3)], 2)
    picture = torch.randn(2, 3, 4, 5) - 3  # all below 0, the filling
    valid = torch.zeros(2, 1, 6, 8)
    valid[:, :, :4, :5] = 1
    filled = Features(F.pad(picture, (0, 3, 0, 2)), valid)
    torch.testing.assert_close(head([filled], (6, 8)), head([Features(picture)], (4, 5)))


def test_the_gradient_method_of_the_docs(place: Path) -> None:
    method = runpy.run_path(str(place / "my_gradients.py"))["EvenNorms"]()
    gramian = torch.diag(torch.tensor([1.0, 9.0, 0.0], dtype=torch.float64))
    assert method(gramian).tolist() == pytest.approx([4 / 3, 4 / 9, 0])


def test_all_architectures_are_listed() -> None:
    """In the table of docs/architectures.md and in the README."""
    kinds = [name for name in architectures.__all__ if is_architecture(getattr(architectures, name))]
    assert len(kinds) == 14
    for page in (ROOT / "README.md", ROOT / "docs" / "architectures.md"):
        assert not [name for name in kinds if f"`{name}`" not in page.read_text("utf-8")], page


def is_architecture(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Architecture) and kind is not Architecture


def test_all_methods_are_listed() -> None:
    """In the tables of docs/weighting.md and in the README."""
    bases = {"Weighting", "LossWeighting", "GradientWeighting", "Combined", "Probe", "TaskInfo"}
    for page in (ROOT / "README.md", ROOT / "docs" / "weighting.md"):
        missing = {
            f"`{name}`" for name in set(weighting.__all__) - bases - {"TorchJD"} if f"`{name}`" not in page.read_text("utf-8")
        }
        assert not missing, page


def test_what_the_table_says_of_methods() -> None:
    """Which losses heads learn from, and who changes gradients."""
    page = (ROOT / "docs" / "weighting.md").read_text(encoding="utf-8").partition("## Methods from gradients")[2]
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if re.match(r"\| `\w+` \|", line)]
    heads = {"weighted": "weighted", "unweighted": "own"}
    for _, name, _, needs, learns, *_ in rows:
        method = getattr(weighting, name.strip("`"))
        if issubclass(method, weighting.GradientWeighting):
            assert (learns, "rows" in needs) == (heads[method.heads], method.needs_rows), name


def test_the_loss_of_the_docs_counts_known_numbers_alone(place: Path) -> None:
    task = runpy.run_path(str(place / "my_numbers.py"))["Cauchy"](["a", "b"], mean=[1.0, 2.0], std=[2.0, 1.0])
    target = torch.tensor([[1.0, 4.0], [torch.nan, 2.0], [0.0, 0.0]])
    task.learn(target)
    prediction = torch.tensor([[2.0, 2.0], [5.0, 1.0], [9.0, torch.inf]], requires_grad=True)
    term = task.loss(prediction, target, torch.tensor([True, True, False]))["loss"]
    assert term.total.item() == pytest.approx(math.log(5) + 0 + math.log(2)) and int(term.denominator) == 3
    term.total.backward()
    assert prediction.grad is not None and prediction.grad[1, 0] == 0 and not prediction.grad[2].any()


def test_yaml_of_the_docs_can_be_parsed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every key in the docs' YAML exists: the parser refuses others."""
    monkeypatch.syspath_prepend(str(place))
    for number, page in enumerate(PAGES):
        for block in blocks(page, "yaml"):
            config = {"model": {"tasks": {"depth": {"class_path": "Depth"}}, "encoder": {"class_path": "SmallCNN"},
                                "optimizer": {"class_path": "torch.optim.AdamW"}}}  # fmt: skip
            given = yaml.safe_load(block)
            config |= given | {"model": config["model"] | given.get("model", {})}
            file = tmp_path / f"{number}.yaml"
            file.write_text(yaml.safe_dump(config))
            with pytest.raises(SystemExit) as caught:
                main(["fit", "--config", str(file), "--print_config"])
            assert caught.value.code == 0, capsys.readouterr().err


def test_links_and_pictures_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
