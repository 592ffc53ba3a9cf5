"""Networks of timm as stages, against timm's own features."""

from pathlib import Path

import pytest
import torch

from mtl_lightning.encoders import Timm
from mtl_lightning.encoders import timm as ours
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'mtl-lightning\[timm\]'"):
        Timm("resnet18")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("resnet26d", {}),
        ("convnext_atto", {}),
        ("efficientnet_lite0", {}),
        ("mobilenetv3_small_050", {}),
        ("regnetx_002", {}),
        ("densenet121", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64}),
    ],
)
def test_same_as_timm(name: str, arguments: dict[str, object], tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=3, **arguments).eval()
    for parameter in whole.parameters():
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.5)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    encoder = Timm(name, weights=str(tmp_path / "weights.pth"), normalize=False, arguments=arguments).eval()
    info = whole.feature_info
    assert [(spec.channels, spec.stride) for spec in encoder.specs] == [(level["num_chs"], level["reduction"]) for level in info]
    image = torch.rand(1, 3, 64, 64)
    reference = timm.create_model(name, features_only=True, **arguments).eval()
    # Timm flattens some of the names; the tensors stand in the same order.
    values = [value for key, value in whole.state_dict().items()]
    names = list(reference.state_dict())
    reference.load_state_dict(dict(zip(names, values[: len(names)], strict=True)))
    with torch.no_grad():
        expected = reference(image)
        features = encoder.start(Features(image))
        for stage, theirs in zip(encoder.stages, expected, strict=True):
            features = stage(features)
            theirs = theirs if theirs.shape[1] == stage.spec.channels else theirs.permute(0, 3, 1, 2)
            torch.testing.assert_close(features.tensor, theirs, rtol=1e-4, atol=1e-4)
            assert theirs.std() > 0
    grey = Timm(name, in_channels=1, weights=str(tmp_path / "weights.pth"), normalize=False, stages=2, arguments=arguments).eval()
    with torch.no_grad():
        mine, theirs = grey(Features(image[:, :1])), encoder(Features(image[:, :1].expand(-1, 3, -1, -1)))
    assert len(mine) == 2
    torch.testing.assert_close(mine[1].tensor, theirs[1].tensor, rtol=1e-3, atol=1e-3)


def test_padding_and_odd_sizes() -> None:
    pytest.importorskip("timm")
    encoder = Timm("convnext_atto").eval()
    valid = torch.ones(1, 1, 65, 97)
    valid[..., 40:] = 0
    with torch.no_grad():
        for features, spec in zip(encoder(Features(torch.rand(1, 3, 65, 97), valid)), encoder.specs, strict=True):
            assert features.valid is not None
            assert features.valid.shape[-2:] == features.tensor.shape[-2:]
            assert features.tensor.shape[1] == spec.channels
            assert not features.tensor[(features.valid == 0).expand_as(features.tensor)].any()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "hrnet_w18_small", "xception41"])
def test_networks_that_are_no_chain_are_refused(name: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=f"timm's {name} cannot be stepped through"):
        Timm(name)


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"'resnet19', which timm .* does not have; near it are .*resnet18"):
        Timm("resnet19")
    with pytest.raises(ConfigError, match=r"arguments \{.nonsense.: 1\}"):
        Timm("resnet18", arguments={"nonsense": 1})
    with pytest.raises(ConfigError, match="is no file and none of the known weights of timm's resnet18"):
        Timm("resnet18", weights="gone.pth")
    with pytest.raises(ConfigError, match="stages is 9, expected 1 to 4"):
        Timm("convnext_atto", stages=9)
    encoder = Timm("swin_tiny_patch4_window7_224", arguments={"img_size": 64})
    with pytest.raises(ConfigError, match=r"refuses the size of the images.*img_size"):
        encoder(Features(torch.rand(1, 3, 96, 96)))
    # A network whose features are not what its modules give one after the other.
    monkeypatch.setattr(ours, "_equal", lambda *_: False)
    with pytest.raises(ConfigError, match="cannot be stepped through"):
        Timm("resnet18")
