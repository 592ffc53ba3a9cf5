"""Encoder weights from a checkpoint of another run, and what does not fit."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision

from mtl_lightning.encoders import ResNet, SmallCNN
from mtl_lightning.encoders.weights import without_pretrained
from mtl_lightning.errors import ConfigError
from mtl_lightning.main import main

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
QUICK = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose only task is ``level``."""
    runs = tmp_path_factory.mktemp("first")
    main(["fit", "--config", str(CONF), "--runs", str(runs), "--model.only=[level]", *QUICK])
    return runs / "tiny" / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("INFO", "mtl_lightning"):
        yield


def encoder_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {key.split("encoder.")[1]: value for key, value in state.items() if ".encoder." in key}


def test_from_a_run_with_other_tasks(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--config", str(CONF), "--runs", str(tmp_path), "--model.only=[color]"]
    weights = tmp_path / "weights.ckpt"
    weights.write_bytes(run.read_bytes())
    main(["fit", *args, *QUICK, f"--model.encoder.weights={weights}", "--model.freeze.stages=all"])
    assert "weights.ckpt: 10 of 10 tensors loaded, 0 missing, 0 unexpected" in capsys.readouterr().err
    given, found = encoder_of(run), encoder_of(tmp_path / "tiny/checkpoints/last.ckpt")
    assert given.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in given.items())
    # The run's own checkpoint has all weights: those that it started from may be gone.
    weights.unlink()
    with pytest.raises(SystemExit):
        main(["fit", *args, *QUICK, f"--model.encoder.weights={weights}"])
    assert f"'{weights}' is no file" in capsys.readouterr().err
    main(["test", "--config", str(tmp_path / "tiny/config.yaml"), "--runs", str(tmp_path)])


def test_fewer_and_other_stages(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = encoder_of(run)
    encoder = SmallCNN([8], weights=str(run))
    assert torch.equal(encoder.stages[0].body.conv.weight, given["stages.0.body.conv.weight"])
    with pytest.raises(ConfigError, match=r"missing: stages.2.body.conv.weight.*strict: false"):
        SmallCNN([8, 8, 8], weights=str(run))
    caplog.clear()
    SmallCNN([8, 8, 8], weights=str(run), strict=False)
    assert re.search(r"10 of 15 tensors loaded, 5 missing, 0 unexpected \(missing: stages.2.body.conv.weight", caplog.text)
    for strict in (True, False):
        with pytest.raises(ConfigError, match=re.escape("stages.1.body.conv.weight (8, 8, 3, 3) for (9, 8, 3, 3)")):
            SmallCNN([8, 9], weights=str(run), strict=strict)
        with pytest.raises(ConfigError, match=r"is not a state_dict of the encoder resnet18: missing: stages.0.body.conv1"):
            ResNet(weights=str(run), strict=strict)


def test_grey_from_rgb(run: Path) -> None:
    grey = SmallCNN([8, 8], in_channels=1, weights=str(run))
    rgb = encoder_of(run)["stages.0.body.conv.weight"]
    assert torch.equal(grey.stages[0].body.conv.weight, rgb.sum(1, keepdim=True))


def test_a_state_dict_of_the_encoder_itself(tmp_path: Path) -> None:
    given = ResNet(stages=2)
    torch.save(given.state_dict(), tmp_path / "encoder.pth")
    found = ResNet(stages=2, weights=str(tmp_path / "encoder.pth"), in_channels=1)
    first = given.stages[0].body.conv1.weight.sum(1, keepdim=True)
    assert torch.equal(found.stages[0].body.conv1.weight, first)
    assert torch.equal(found.stages[1].body.layer1[1].conv2.weight, given.stages[1].body.layer1[1].conv2.weight)


def test_a_file_with_part_of_torchvisions_tensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    part = {key: value for key, value in state.items() if not key.startswith("layer4")} | {"extra.weight": torch.ones(1)}
    torch.save(part, tmp_path / "part.pth")
    with pytest.raises(ConfigError, match=r"missing: layer4.0.conv1.weight.*unexpected: extra.weight; .*strict: false"):
        ResNet(weights=str(tmp_path / "part.pth"))
    encoder = ResNet(weights=str(tmp_path / "part.pth"), strict=False)
    assert torch.equal(encoder.stages[3].body.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    counts = r"75 of 100 tensors loaded, 25 missing, 1 unexpected, 2 of the classifier left out \(missing: layer4.0.conv1.weight"
    assert re.search(counts, caplog.text)


def test_checkpoints_with_no_or_several_encoders(tmp_path: Path) -> None:
    state = SmallCNN([4]).state_dict()
    for prefixes, found in (([], "no encoder"), (["a", "b"], r"several encoders \(model.architecture.a, model.architecture.b\)")):
        keys = {f"model.architecture.{prefix}.{key}": value for prefix in prefixes for key, value in state.items()}
        torch.save({"state_dict": {"model.architecture.other": torch.ones(1)} | keys}, tmp_path / "odd.ckpt")
        with pytest.raises(ConfigError, match=f"odd.ckpt' holds {found}"):
            SmallCNN([4], weights=str(tmp_path / "odd.ckpt"))


def test_nothing_is_read_where_a_checkpoint_follows(tmp_path: Path) -> None:
    with without_pretrained():
        ResNet(weights="IMAGENET1K_V1", stages=1)
        SmallCNN([4], weights=str(tmp_path / "gone.pth"))
    with pytest.raises(ConfigError, match=r"'IMAGENET9' is no file and none of the known weights of resnet18.*IMAGENET1K_V1"):
        ResNet(weights="IMAGENET9", stages=1)
