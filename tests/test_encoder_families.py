"""Torchvision's other families as stages: equal to torchvision's own networks, true specs, padding, weights, export."""

import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from mtl_lightning.encoders import (
    VGG,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    Encoder,
    GoogLeNet,
    ImageEncoder,
    MobileNet,
    RegNet,
    ResNet,
    SmallCNN,
    Swin,
    ViT,
)
from mtl_lightning.encoders.convnext import ConvNeXtName
from mtl_lightning.encoders.densenet import DenseNetName
from mtl_lightning.encoders.efficientnet import EfficientNetName
from mtl_lightning.encoders.mobilenet import MobileNetName
from mtl_lightning.encoders.regnet import RegNetName
from mtl_lightning.encoders.swin import SwinName
from mtl_lightning.encoders.vit import Patches, ViTName
from mtl_lightning.encoders.vit import _modern as vit_modern
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.heads import ClassToken, Linear, UNet

Trunk = Callable[[nn.Module, Tensor], Tensor]


def sequence(network: nn.Module, image: Tensor) -> Tensor:
    return network.features(image)


def regnet(network: nn.Module, image: Tensor) -> Tensor:
    return network.trunk_output(network.stem(image))


def densenet(network: nn.Module, image: Tensor) -> Tensor:
    return torch.relu(network.features(image))


def swin(network: nn.Module, image: Tensor) -> Tensor:
    return network.permute(network.norm(network.features(image)))


def vit(network: nn.Module, image: Tensor) -> Tensor:
    tokens = torch.cat([network.class_token.expand(len(image), -1, -1), network._process_input(image)], dim=1)
    return network.encoder(tokens)[:, 1:].transpose(1, 2).reshape(len(image), -1, 7, 7)


SMALLEST: list[tuple[str, type[Encoder], Trunk]] = [
    ("convnext_tiny", ConvNeXt, sequence),
    ("efficientnet_b0", EfficientNet, sequence),
    ("efficientnet_v2_s", EfficientNet, sequence),
    ("mobilenet_v2", MobileNet, sequence),
    ("mobilenet_v3_small", MobileNet, sequence),
    ("mobilenet_v3_large", MobileNet, sequence),
    ("regnet_x_400mf", RegNet, regnet),
    ("densenet121", DenseNet, densenet),
    ("swin_t", Swin, swin),
    ("swin_v2_t", Swin, swin),
    ("vit_b_32", ViT, vit),
]
NAMES = {
    ConvNeXt: ("convnext_", ConvNeXtName),
    EfficientNet: ("efficientnet_", EfficientNetName),
    MobileNet: ("mobilenet_", MobileNetName),
    RegNet: ("regnet_", RegNetName),
    DenseNet: ("densenet", DenseNetName),
    Swin: ("swin_", SwinName),
    ViT: ("vit_", ViTName),
}
FIVE, FOUR = [2, 4, 8, 16, 32], [4, 8, 16, 32]
STRIDES = {ConvNeXt: FOUR, Swin: FOUR, ViT: [32] * 4}


def network(name: str) -> nn.Module:
    """Torchvision's network with weights that make every layer count and every picture look different."""
    torch.manual_seed(0)
    whole = torchvision.models.get_model(name, num_classes=2)
    for key, tensor in whole.state_dict().items():
        if tensor.dim() == 4:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu")
        elif key.endswith(("running_var", "layer_scale")) or (tensor.dim() == 1 and key.endswith("weight")):
            tensor.uniform_(0.7, 1.4)
        elif key.endswith(("class_token", "pos_embedding")):
            tensor.normal_(0, 0.5)
        elif tensor.is_floating_point() and tensor.dim() == 1:
            tensor.normal_(0, 0.05)
    return whole.eval()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], None]:
    """Makes "DEFAULT" the weights of a network at hand."""

    def serve(whole: nn.Module) -> None:
        monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **_: whole.state_dict())

    return serve


@pytest.mark.parametrize(("name", "family", "trunk"), SMALLEST, ids=[name for name, *_ in SMALLEST])
def test_family(name: str, family: type[Encoder], trunk: Trunk, served: Callable[[nn.Module], None]) -> None:
    whole = network(name)
    served(whole)
    encoder = family(name=name, weights="DEFAULT", normalize=False).eval()  # type: ignore[call-arg]
    assert [spec.stride for spec in encoder.specs] == STRIDES.get(family, FIVE)
    with torch.no_grad():
        image = torch.rand(1, 3, *((224, 224) if family is ViT else (65, 97)))
        last = encoder(Features(image))[-1].tensor
        torch.testing.assert_close(last, trunk(whole, image), rtol=0, atol=0)
        assert last.std() > 0.01
        specs_are_true(encoder, (65, 97))
        grey = family(name=name, weights="DEFAULT", normalize=False, in_channels=1, stages=2).eval()  # type: ignore[call-arg]
        found, expected = grey(Features(image[:, :1])), encoder(Features(image[:, :1].expand(-1, 3, -1, -1)))
    assert len(found) == len(grey.specs) == 2
    for mine, theirs in zip(found, expected, strict=False):
        torch.testing.assert_close(mine.tensor, theirs.tensor, rtol=1e-3, atol=1e-3 * float(theirs.tensor.abs().max()))
    unused = ("classifier", "fc", "head", "heads")
    weights = sum(p.numel() for key, p in whole.named_parameters() if key.split(".")[0] not in unused)
    assert sum(p.numel() for p in encoder.parameters()) == weights


def specs_are_true(encoder: Encoder, size: tuple[int, int]) -> None:
    """Channels, strides, validity; no stage changes what an earlier one gave; padding is 0."""
    valid = torch.ones(2, 1, *size)
    valid[1, :, 33:] = valid[1, :, :, 20:] = 0
    features, pyramid, copies = encoder.start(Features(torch.rand(2, 3, *size), valid)), [], []
    for stage in encoder.stages:
        features = stage(features)
        pyramid.append(features)
        copies.append(features.tensor.clone())
    for features, copy, spec in zip(pyramid, copies, encoder.specs, strict=True):
        assert torch.equal(features.tensor, copy)
        assert (features.tensor.shape[1], spec.layout) == (spec.channels, "map")
        for side, pixels in zip(features.tensor.shape[-2:], size, strict=True):
            assert pixels // spec.stride <= side <= -(-pixels // spec.stride)
        assert features.valid is not None
        assert features.valid.shape == (2, 1, *features.tensor.shape[-2:])
        assert features.tensor.isfinite().all()
        padding = (features.valid == 0).expand_as(features.tensor)
        assert padding.any()
        assert not features.tensor[padding].any()
        assert (features.token is not None) == spec.token


def test_every_name_is_torchvisions() -> None:
    everything = torchvision.models.list_models(torchvision.models)
    for prefix, names in NAMES.values():
        assert set(get_args(names)) == {name for name in everything if name.startswith(prefix)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family, (_, names) in NAMES.items() for name in get_args(names) if family is not RegNet],
)
def test_specs_of_every_name(family: type[Encoder], name: str) -> None:
    with torch.device("meta"), torch.no_grad():
        encoder = family(name=name).eval()  # type: ignore[call-arg]
        for features, spec in zip(encoder(Features(torch.rand(1, 3, 448, 896))), encoder.specs, strict=True):
            assert tuple(features.tensor.shape[1:]) == (spec.channels, 448 // spec.stride, 896 // spec.stride)


@pytest.mark.slow
def test_specs_of_the_other_regnets() -> None:
    for name in ("regnet_y_400mf", "regnet_x_3_2gf", "regnet_y_1_6gf"):
        encoder = RegNet(name).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            for features, spec in zip(encoder(Features(torch.rand(1, 3, 64, 96))), encoder.specs, strict=True):
                assert tuple(features.tensor.shape[1:]) == (spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_padding_has_no_influence_on_a_vision_transformer() -> None:
    torch.manual_seed(0)
    encoder = ViT("vit_b_32", stages=1).eval()
    nn.init.normal_(encoder.stages[0].patches.positions)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        (alone,) = encoder(Features(image))
        for size in ((64, 128), (160, 100)):
            batch, valid = torch.rand(2, 3, *size), torch.ones(2, 1, *size)
            batch[0, :, :64, :96] = image
            valid[0, :, 64:] = valid[0, :, :, 96:] = 0
            (together,) = encoder(Features(batch, valid))
            torch.testing.assert_close(together.tensor[:1, :, :2, :3], alone.tensor, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together.token[:1], alone.token, rtol=1e-4, atol=1e-4)


def test_positions_are_stretched_over_the_picture() -> None:
    projection = nn.Conv2d(3, 1, 32, stride=32)
    positions = nn.Parameter(torch.tensor([5.0, 1.0, 2.0, 3.0, 4.0]).view(1, 5, 1))
    patches = Patches(projection, nn.Parameter(torch.ones(1, 1, 1)), positions)
    with torch.no_grad():
        projection.weight.zero_()
        projection.bias.zero_()
        for size in ((64, 64), (33, 64), (64, 50)):
            features = patches(Features(torch.rand(1, 3, *size)))
            assert features.tensor[0, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
            assert features.token.tolist() == [[6.0]]
        large = patches(Features(torch.rand(1, 3, 128, 64))).tensor[0, 0]
    assert large.shape == (4, 2)
    torch.testing.assert_close(large[:, 1] - large[:, 0], torch.ones(4))
    assert large[:, 0].tolist() == sorted(large[:, 0].tolist())


def test_positions_of_another_image_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"encoder.pos_embedding": torch.zeros(1, 5, 768)}
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **_: state)
    with pytest.raises(ConfigError, match=re.escape("encoder.pos_embedding (1, 5, 768) for (1, 50, 768)") + ".*image_size"):
        ViT("vit_b_32", weights="DEFAULT")
    with pytest.raises(ConfigError, match="image_size is 100, expected a multiple of vit_b_32's patches: 32"):
        ViT("vit_b_32", image_size=100)


def test_older_names_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vit_modern("encoder.layers.encoder_layer_3.mlp.linear_1.bias") == "encoder.layers.encoder_layer_3.mlp.0.bias"
    assert vit_modern("encoder.layers.encoder_layer_3.mlp.linear_2.bias") == "encoder.layers.encoder_layer_3.mlp.3.bias"
    whole = torchvision.models.densenet121(num_classes=2)
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.", key): value for key, value in whole.state_dict().items()}
    assert set(state) != set(whole.state_dict())
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **_: state)
    block = DenseNet(weights="DEFAULT").stages[-1].body.denseblock4
    assert torch.equal(block.denselayer2.conv1.weight, whole.features.denseblock4.denselayer2.conv1.weight)


@pytest.mark.parametrize(
    ("family", "arguments", "sizes"),
    [
        (ResNet, {}, (1, 1, 1, 1, 1)),
        (VGG, {"name": "vgg11"}, (2, 4, 8, 16, 32)),
        (GoogLeNet, {}, (1, 3, 7, 15, 15)),
        (ConvNeXt, {}, (4, 8, 16, 32)),
        (DenseNet, {}, (1, 1, 5, 13, 29)),
        (Swin, {}, (4, 4, 4, 4)),
    ],
)
def test_smallest_images(family: type[Encoder], arguments: dict[str, Any], sizes: tuple[int, ...]) -> None:
    whole = family(**arguments).eval()
    for count, size in enumerate(sizes, start=1):
        encoder = ImageEncoder(list(whole.stages), 3, 0.0, 1.0, smallest=sizes, take=count).eval()  # type: ignore[arg-type]
        assert len(encoder.specs) == count
        with torch.no_grad():
            assert encoder(Features(torch.rand(1, 3, size, size + 1)))[-1].tensor.numel() > 0
            if size > 1:
                with pytest.raises(RuntimeError):
                    for features in [Features(torch.rand(1, 3, size - 1, 64))]:
                        for stage in encoder.stages:
                            features = stage(features)
                with pytest.raises(ConfigError, match=f"at least {size} x {size}"):
                    encoder(Features(torch.rand(1, 3, size - 1, 64)))


def test_more_stages_than_there_are() -> None:
    assert [spec.stride for spec in ResNet(stages=3).specs] == [2, 4, 8]
    for stages in (0, 6, -1):
        with pytest.raises(ConfigError, match=rf"init_args.stages is {stages}, expected 1 to 5 .* 5 \(512 channels, stride 32\)"):
            ResNet(stages=stages)
    with pytest.raises(ConfigError, match=r"init_args.name is 'swin_x', expected one of"):
        Swin("swin_x")  # type: ignore[arg-type]


def test_a_head_that_needs_a_pyramid() -> None:
    flat = [FeatureSpec(8, 16)] * 4
    with pytest.raises(ConfigError, match=r"head UNet needs a pyramid.* 4 maps, all of stride 16.*FCN.*Linear"):
        UNet(flat, 2)
    UNet([FeatureSpec(8, 4), FeatureSpec(8, 8), FeatureSpec(8, 8)], 2)
    UNet(flat[:1], 2)


def test_class_token() -> None:
    head = ClassToken([FeatureSpec(3, 16, token=True)], 2)
    features = Features(torch.rand(2, 3, 4, 4), token=torch.rand(2, 3))
    torch.testing.assert_close(head([features], (64, 64)), head.linear(features.token), rtol=0, atol=0)
    assert torch.equal(features.like(torch.rand(2, 3, 2, 2)).token, features.token)
    with pytest.raises(ConfigError, match=r"ClassToken needs an encoder with a class token \(ViT\)"):
        ClassToken(SmallCNN().specs, 2)
    with pytest.raises(ConfigError, match="dropout is 1"):
        ClassToken([FeatureSpec(3, 16, token=True)], 2, dropout=1)


class Classifier(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, Linear(encoder.specs, 2)

    def forward(self, image: Tensor) -> Tensor:
        prediction: Tensor = self.head(self.encoder(Features(image)), (64, 64))
        return prediction


@pytest.mark.parametrize("family", [Swin, ViT])
def test_export(family: type[Encoder]) -> None:
    model = Classifier(family(stages=1)).eval()  # type: ignore[call-arg]
    image = torch.rand(2, 3, 64, 80)
    exported = torch.export.export(model, (image,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(image), model(image))
