"""Every file in configs/ is parsed, built and run for a step, on little data."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from mtl_lightning.main import main
from tests.conftest import without_pictures
from tests.data.clinc150 import write_clinc150
from tests.data.folders import write_folders
from tests.data.manifest import write_manifest
from tests.data.office import write_office

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCENES = ["--data.init_args.train_size=32", "--data.init_args.val_size=8", "--data.init_args.test_size=8"]
PETS = ["--data.init_args.root={pets}", "--data.init_args.manifest=partial.csv", "--data.init_args.batch_size=4"]
FOLDER = ["--data.init_args.root={pets}/folders", "--data.init_args.batch_size=4", "--data.init_args.image_size=32"]
SMALL = {
    "scenes": SCENES,
    "scenes_gradients": SCENES,
    "scenes_wandb": SCENES,
    "pets": PETS,
    "pets_finetune": [*PETS, "--data.init_args.image_size=64"],
    "folder": FOLDER,
    "office": [
        "--data.init_args.root={pets}/office",
        "--data.init_args.batch_size=12",
        "--data.init_args.image_size=32",
        "--model.encoder.init_args.stages=2",
    ],
    "kinds": SCENES,
    "imbalanced": SCENES,
    "clinc150": ["--data.init_args.root={pets}/clinc150", "--data.init_args.batch_size=128"],
}
"""What makes a configuration's data small; ``{pets}`` is a generated copy of the pets' layout, others are in folders of it."""


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pets")
    write_manifest(root, count=45, labelled=0.85)
    write_folders(root / "folders", 30)
    write_clinc150(root / "clinc150")
    write_office(root / "office", lists=True)
    return root


def test_every_configuration_is_here() -> None:
    assert {path.stem for path in CONFIGS} == set(SMALL)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration(path: Path, pets: Path, tmp_path: Path) -> None:
    if "WandbLogger" in path.read_text():
        pytest.importorskip("wandb")
    small = [part.format(pets=pets) for part in SMALL[path.stem]]
    common = ["--config", str(path), "--runs", str(tmp_path), *small, "--data.init_args.num_workers=0"]
    with nullcontext() if "WandbLogger" in path.read_text() else without_pictures():
        main(["fit", *common, "--trainer.max_steps=1", "--trainer.accelerator=cpu"])
    main(["test", *common, "--trainer.accelerator=cpu"])
    config = yaml.safe_load(path.read_text())
    summary = json.loads((tmp_path / config["name"] / "summary.json").read_text())
    expected = set(config["model"]["tasks"])
    assert set(summary["val"]["tasks"]) == expected
    assert set(summary["test"]["tasks"]) == expected
    assert all(torch.isfinite(torch.tensor(task["metrics"]["loss"])) for task in summary["test"]["tasks"].values())
    assert (tmp_path / config["name"] / "predictions_test.png").stat().st_size > 10_000
