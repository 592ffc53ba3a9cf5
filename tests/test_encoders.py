"""Encoders against torchvision's own networks, their specs, and what goes wrong with weights."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from mtl_lightning.encoders import VGG, Encoder, GoogLeNet, ResNet, SmallCNN
from mtl_lightning.encoders.resnet import ResNetName
from mtl_lightning.encoders.vgg import VGGName
from mtl_lightning.encoders.weights import load_weights
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features

KEY = re.escape("model.encoder.init_args.weights")


def whole(name: str) -> nn.Module:
    """torchvision's network, of VGG without the weights of its large classifier."""
    torch.manual_seed(0)
    if name.startswith("vgg"):
        with torch.device("meta"):
            network = torchvision.models.get_model(name, init_weights=False)
        network.classifier = nn.Sequential(nn.Linear(1, 1))
        network.to_empty(device="cpu")
    elif name == "googlenet":
        network = torchvision.models.GoogLeNet(num_classes=2, aux_logits=False, init_weights=False)
    else:
        network = torchvision.models.get_model(name, num_classes=2)
    # Batch norms that do something and values that neither die out nor explode: else every image looks alike at the end.
    for key, tensor in network.state_dict().items():
        if tensor.dim() == 4:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu")
        elif key.endswith(("running_var", "weight")):
            tensor.uniform_(0.7, 1.4)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.05)
    return network.eval()


def trunk(network: nn.Module, image: Tensor) -> Tensor:
    """What torchvision's network computes before its global pooling, one row per image."""
    network.avgpool = nn.Identity()
    for name in ("classifier", "fc"):
        if hasattr(network, name):
            setattr(network, name, nn.Identity())
    return network(image)


def save(network: nn.Module, path: Path) -> str:
    torch.save(network.state_dict(), path)
    return str(path)


def count(module: nn.Module, skip: tuple[str, ...] = ()) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if not name.startswith(skip))


FAMILIES = [("resnet18", ResNet), ("vgg11", VGG), ("vgg11_bn", VGG), ("googlenet", GoogLeNet)]


def build(family: type[Encoder], name: str, **arguments: object) -> Encoder:
    return family(**({} if family is GoogLeNet else {"name": name}), **arguments).eval()


@pytest.mark.parametrize(("name", "family"), FAMILIES)
def test_same_as_torchvision(name: str, family: type[Encoder], tmp_path: Path) -> None:
    network = whole(name)
    encoder = build(family, name, weights=save(network, tmp_path / "weights.pth"), normalize=False)
    for size in [(64, 64), (65, 97)]:
        image = torch.rand(2, 3, *size)
        with torch.no_grad():
            last = encoder(Features(image))[-1].tensor
            torch.testing.assert_close(last.flatten(1), trunk(network, image), rtol=0, atol=0)
            assert last.std() > 0
    assert count(encoder) == count(network, ("fc", "classifier"))


@pytest.mark.parametrize(("name", "family"), [FAMILIES[0], FAMILIES[1], FAMILIES[3]])
def test_a_grey_picture_gives_what_it_gives_in_three_equal_channels(name: str, family: type[Encoder], tmp_path: Path) -> None:
    network = whole(name)
    path = save(network, tmp_path / "weights.pth")
    encoder = build(family, name, weights=path, normalize=False, in_channels=1)
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        ours, theirs = encoder(Features(image))[-1].tensor.flatten(1), trunk(network, image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert count(encoder) == count(network, ("fc", "classifier")) - first.weight.numel() * 2 // 3
    grey = build(family, name, weights=save(whole_grey(network), tmp_path / "grey.pth"), in_channels=1)
    assert grey.in_channels == 1


def whole_grey(network: nn.Module) -> nn.Module:
    """The network with a first convolution that was already made for grey images."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.sum(1, keepdim=True))
    return network


@pytest.mark.parametrize(("in_channels", "size"), [(1, (65, 97)), (3, (64, 64))])
@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        (SmallCNN, {}),
        (SmallCNN, {"widths": [8, 4, 6], "norm": False}),
        (ResNet, {}),
        (VGG, {"name": "vgg11"}),
        (GoogLeNet, {}),
    ],
)
def test_specs_are_true(family: type[Encoder], arguments: dict[str, object], size: tuple[int, int], in_channels: int) -> None:
    encoder = family(in_channels=in_channels, **arguments).eval()
    valid = torch.ones(1, 1, *size)
    valid[..., size[1] // 2 :] = 0
    with torch.no_grad():
        pyramid = encoder(Features(torch.rand(1, in_channels, *size), valid))
    assert len(pyramid) == len(encoder.specs)
    for features, spec in zip(pyramid, encoder.specs, strict=True):
        assert features.tensor.shape[1] == spec.channels
        assert spec.layout == "map"
        for side, pixels in zip(features.tensor.shape[-2:], size, strict=True):
            assert pixels // spec.stride <= side <= -(-pixels // spec.stride)
        assert features.valid is not None
        assert features.valid.shape[-2:] == features.tensor.shape[-2:]
        assert features.tensor.isfinite().all()


def test_strides() -> None:
    assert [spec.stride for spec in SmallCNN().specs] == [2, 4]
    assert [spec.channels for spec in SmallCNN().specs] == [64, 128]
    assert [spec.stride for spec in ResNet("resnet18").specs] == [2, 4, 8, 16, 32]
    assert [spec.stride for spec in VGG("vgg11").specs] == [2, 4, 8, 16, 32]
    assert [spec.stride for spec in GoogLeNet().specs] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("name", [*get_args(ResNetName), *get_args(VGGName)])
def test_every_name_has_torchvisions_keys_and_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.init, "kaiming_normal_", lambda tensor, *_, **__: tensor)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, **({"init_weights": False} if name.startswith("vgg") else {}))
        ours = VGG(name) if name.startswith("vgg") else ResNet(name)  # type: ignore[arg-type]
    shapes = [tuple(t.shape) for key, t in theirs.state_dict().items() if not key.startswith(("fc", "classifier"))]
    assert [tuple(t.shape) for t in ours.state_dict().values()] == shapes
    for stage in ours.stages:
        last = [module for module in stage.modules() if isinstance(module, nn.Conv2d)][-1]
        assert stage.spec.channels == last.out_channels


def test_normalisation(tmp_path: Path) -> None:
    image = torch.rand(1, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for encoder in (ResNet("resnet18"), VGG("vgg11")):
        torch.testing.assert_close(encoder.start(Features(image)).tensor, (image - mean) / std)
        assert not any("mean" in key and "running" not in key for key in encoder.state_dict())
    torch.testing.assert_close(ResNet("resnet18", normalize=False).start(Features(image)).tensor, image, rtol=0, atol=0)
    grey = ResNet("resnet18", in_channels=1).start(Features(image[:, :1])).tensor
    torch.testing.assert_close(grey, (image[:, :1] - 0.449) / 0.226)

    network = whole("googlenet")
    network.transform_input = True
    encoder = GoogLeNet(weights=save(network, tmp_path / "weights.pth")).eval()
    with torch.no_grad():
        ours, theirs = encoder(Features(image))[-1].tensor.flatten(1), trunk(network, (image - mean) / std)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_small_cnn_by_hand() -> None:
    encoder = SmallCNN([1], in_channels=1, norm=False)
    with torch.no_grad():
        encoder.stages[0].body.conv.weight.copy_(torch.ones(1, 1, 3, 3))
        encoder.stages[0].body.conv.bias.fill_(-4)
    image = torch.zeros(1, 1, 4, 4)
    image[..., :2, :2] = 2.0
    # The top left pixel has four twos around it: 8 - 4; two steps from the corner one two is left: relu(2 - 4) = 0.
    assert encoder(Features(image))[0].tensor.flatten().tolist() == [4.0, 0.0, 0.0, 0.0]
    assert count(SmallCNN()) == 64 * 27 + 128 + 128 * 576 + 256
    assert count(SmallCNN(norm=False)) == 64 * 27 + 64 + 128 * 576 + 128


def test_initial_activations_neither_vanish_nor_explode() -> None:
    torch.manual_seed(0)
    for encoder in (SmallCNN([16, 16, 16, 16], norm=False), VGG("vgg11"), ResNet("resnet18"), GoogLeNet()):
        with torch.no_grad():
            last = encoder.train()(Features(torch.rand(4, 3, 64, 64)))[-1].tensor
        assert 0.05 < float(last.std()) < 20


def test_download_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    network = whole("resnet18")
    asked: list[str] = []

    def given(self: WeightsEnum, **_: object) -> dict[str, Tensor]:
        asked.append(self.name)
        return network.state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", given)
    ResNet("resnet18")
    assert asked == []
    encoder = ResNet("resnet18", weights="DEFAULT")
    assert asked == ["IMAGENET1K_V1"]
    torch.testing.assert_close(encoder.stages[0].body.conv1.weight, network.conv1.weight)

    def offline(self: WeightsEnum, **_: object) -> dict[str, Tensor]:
        raise OSError("no route")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(ConfigError, match=KEY + ".*IMAGENET1K_V1.*no route"):
        ResNet("resnet18", weights="IMAGENET1K_V1")


class Foreign:
    """An object that safe loading refuses."""


def test_bad_weights(tmp_path: Path) -> None:
    trunk = nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 7), "bn1": nn.BatchNorm2d(4), "layer1": nn.Conv2d(4, 4, 3)})
    state = {key: tensor.clone() for key, tensor in trunk.state_dict().items()} | {"fc.weight": torch.ones(2, 4)}
    bad = tmp_path / "bad.pth"
    torch.save(state, bad)
    whole_file = bad.read_bytes()

    def load(weights: str = str(bad)) -> None:
        load_weights(trunk, "resnet18", weights, first="conv1.weight", classifier=["fc"])

    def refused(match: str, weights: str = str(bad)) -> None:
        with pytest.raises(ConfigError, match=KEY + ".*" + match):
            load(weights)

    load()
    refused("IMAGENET1K_V1.*DEFAULT", "IMAGENET22K")
    refused("no file", str(tmp_path))
    for length in (0, 1, 100, len(whole_file) // 2, len(whole_file) - 1):
        bad.write_bytes(whole_file[:length])
        refused("bad.pth.*cut off")
    bad.write_text("not a checkpoint")
    refused("bad.pth.*cut off")
    torch.save({"model": Foreign()}, bad)
    refused("bad.pth.*more than tensors")
    torch.save({"state_dict": state, "epoch": 3}, bad)
    refused("state_dict.*epoch")
    torch.save([state], bad)
    refused("a list")
    torch.save({key: value for key, value in state.items() if key != "layer1.weight"}, bad)
    refused("missing: layer1.weight, unexpected: none")
    torch.save(state | {"fc2.weight": torch.ones(1)}, bad)
    refused("missing: none, unexpected: fc2.weight")
    torch.save({f"module.{key}": value for key, value in state.items()}, bad)
    refused("missing: conv1.weight.* more, unexpected: module.conv1.weight.*and 5 more")
    torch.save(state | {"layer1.weight": torch.ones(4, 3, 3, 3)}, bad)
    refused(re.escape("layer1.weight (4, 3, 3, 3) for (4, 4, 3, 3)") + r".*init_args .*\(name")
    # Files older than the batch counters are complete.
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, bad)
    load()
    with pytest.raises(ConfigError, match=KEY + ".*other shapes than resnet18"):
        ResNet("resnet18", weights=str(bad))


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="resnet18 has no dilated form"):
        ResNet("resnet18", dilated=True)
    with pytest.raises(ConfigError, match=r"init_args.name is 'resnet19'"):
        ResNet("resnet19")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"init_args.name is 'vgg12'"):
        VGG("vgg12")  # type: ignore[arg-type]
    for widths in ([], [8, 0]):
        with pytest.raises(ConfigError, match="widths"):
            SmallCNN(widths)


def test_dilated() -> None:
    encoder = ResNet("resnet50", dilated=True).eval()
    assert [spec.stride for spec in encoder.specs] == [2, 4, 8, 8, 8]
    with torch.no_grad():
        pyramid = encoder(Features(torch.rand(1, 3, 65, 97)))
    assert [tuple(f.tensor.shape[1:]) for f in pyramid[2:]] == [(512, 9, 13), (1024, 9, 13), (2048, 9, 13)]


@pytest.mark.filterwarnings("ignore:[\\s\\S]*JsonargparseDeprecationWarning", "ignore:[\\s\\S]*instantiate_classes")
def test_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Encoder, "encoder")
    config = parser.parse_string("encoder: {class_path: ResNet, init_args: {name: resnet18, in_channels: 1}}")
    encoder = parser.instantiate_classes(parser.parse_string(parser.dump(config))).encoder
    assert isinstance(encoder, ResNet)
    assert encoder.in_channels == 1
    config = parser.parse_args(["--encoder", "SmallCNN", "--encoder.widths", "[4, 5]"])
    assert [spec.channels for spec in parser.instantiate_classes(config).encoder.specs] == [4, 5]
    with pytest.raises(Exception, match="in_channels"):
        parser.parse_string("encoder: {class_path: GoogLeNet, init_args: {in_channels: 2}}")
