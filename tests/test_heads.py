"""Heads: values by hand, padding, sizes, gradients, configuration and export."""

from collections.abc import Callable, Sequence

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from mtl_lightning.encoders import SmallCNN
from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec, pool
from mtl_lightning.heads import FCN, MLP, Head, Linear, UNet
from mtl_lightning.heads.blocks import BatchNorm

SPECS = [FeatureSpec(6, 2), FeatureSpec(10, 4), FeatureSpec(12, 8)]
VECTOR_HEADS = [(Linear, {}), (Linear, {"pool": 3}), (MLP, {}), (MLP, {"hidden": [7, 5], "pool": 2}), (MLP, {"hidden": []})]
DENSE_HEADS = [(FCN, {}), (FCN, {"width": 4}), (UNet, {}), (UNet, {"widths": [8, 4], "norm": False})]


def pyramid(rows: int, height: int, width: int, specs: Sequence[FeatureSpec] = SPECS) -> list[Features]:
    """Random maps with sides rounded up."""
    shapes = [(rows, spec.channels, -(-height // spec.stride), -(-width // spec.stride)) for spec in specs]
    return [Features(torch.randn(shape)) for shape in shapes]


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("size", [(64, 64), (37, 51), (5, 3)])
def test_shapes(rows: int, size: tuple[int, int]) -> None:
    for head, arguments in VECTOR_HEADS:
        assert head(SPECS, 4, **arguments).eval()(pyramid(rows, *size), size).shape == (rows, 4)
    for head, arguments in DENSE_HEADS:
        assert head(SPECS, 4, **arguments).eval()(pyramid(rows, *size), size).shape == (rows, 4, *size)


@pytest.mark.parametrize(("head", "arguments"), VECTOR_HEADS + DENSE_HEADS)
def test_every_parameter_and_every_map_read_gets_a_gradient(head: Callable[..., Head], arguments: dict[str, object]) -> None:
    torch.manual_seed(0)
    module = head(SPECS, 4, **arguments)
    features = pyramid(2, 37, 51)
    for feature in features:
        feature.tensor.requires_grad_()
    module(features, (37, 51)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    read = features if head is UNet else features[-1:]
    assert all(feature.tensor.grad is not None and feature.tensor.grad.abs().sum() > 0 for feature in read)


def test_linear_by_hand() -> None:
    head = Linear([FeatureSpec(2, 1)], 1, pool=2)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0, 0.0, 0.0, 0.0, 0.5]]))
        head.linear.bias.fill_(0.25)
    first = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 8]])
    tensor = torch.stack([first, torch.ones(4, 4)])[None]
    assert head([Features(tensor)], (4, 4)).item() == 1 + 20 + 300 + 5000 + 0.5 + 0.25


def test_mlp_without_hidden_layers_is_linear() -> None:
    linear, mlp = Linear(SPECS, 3, pool=2), MLP(SPECS, 3, hidden=[], pool=2)
    mlp.layers[-1].load_state_dict(linear.linear.state_dict())
    features = pyramid(2, 40, 40)
    torch.testing.assert_close(mlp(features, (40, 40)), linear(features, (40, 40)))
    assert sum(p.numel() for p in MLP(SPECS, 3, hidden=[7], pool=2).parameters()) == 48 * 7 + 7 + 7 * 3 + 3


def test_mlp_is_not_linear() -> None:
    torch.manual_seed(0)
    head, features = MLP(SPECS, 3), pyramid(1, 16, 16)
    zero, once, twice = (head([Features(f.tensor * k) for f in features], (16, 16)) for k in (0, 1, 2))
    assert not torch.allclose(twice - once, once - zero, atol=1e-3)


@pytest.mark.parametrize("head", [Linear(SPECS, 3, dropout=0.5), MLP(SPECS, 3, dropout=0.5), FCN(SPECS, 3, dropout=0.5)])
def test_dropout_only_in_training(head: Head) -> None:
    features = pyramid(2, 32, 32)
    head.train()
    assert not torch.equal(head(features, (32, 32)), head(features, (32, 32)))
    head.eval()
    assert torch.equal(head(features, (32, 32)), head(features, (32, 32)))


@pytest.mark.parametrize(("head", "arguments"), [(Linear, {}), (MLP, {"hidden": [9]})])
def test_padding_changes_nothing(head: Callable[..., Head], arguments: dict[str, object]) -> None:
    torch.manual_seed(0)
    # Values in eighths and powers of two as divisors: sums and means are exact in any order.
    encoder = Encoder([Stage(nn.Conv2d(3, 4, 1), FeatureSpec(4, 1))], 3, mean=0.5, std=0.25)
    convolution = encoder.stages[0].body
    with torch.no_grad():
        convolution.weight.copy_(torch.randint(-8, 8, convolution.weight.shape) / 8)
        convolution.bias.copy_(torch.randint(-8, 8, (4,)) / 8)
    module = head(encoder.specs, 5, **arguments)
    image = torch.randint(0, 8, (2, 3, 8, 16)) / 8
    padded, valid = torch.zeros(2, 3, 20, 24), torch.zeros(2, 1, 20, 24)
    padded[..., :8, :16], valid[..., :8, :16] = image, 1
    alone = module(encoder(Features(image)), (8, 16))
    torch.testing.assert_close(module(encoder(Features(padded, valid)), (20, 24)), alone, rtol=0, atol=1e-6)
    assert not torch.allclose(module(encoder(Features(padded)), (20, 24)), alone, atol=1e-2)


def test_fcn_by_hand() -> None:
    head = FCN([FeatureSpec(1, 2)], 1, width=1).eval()
    with torch.no_grad():
        head.layers[0][0].weight.copy_(torch.ones(1, 1, 3, 3))
        head.layers[2].weight.fill_(2.0)
        head.layers[2].bias.fill_(1.0)
    # Sums of 3x3 neighbourhoods: 10 everywhere on a 2x2 map (batch norm divides by sqrt(1 + 1e-5)); constant upsampled.
    prediction = head([Features(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))], (5, 7))
    torch.testing.assert_close(prediction, torch.full((1, 1, 5, 7), 21.0), rtol=1e-4, atol=0)
    assert FCN(SPECS, 2).layers[0][0].out_channels == 3
    assert FCN([FeatureSpec(2, 2)], 2).layers[0][0].out_channels == 1


def test_fcn_is_bilinear_and_aligned_with_the_pixels() -> None:
    head = FCN([FeatureSpec(1, 2)], 1, width=1).eval()
    head.layers = nn.Identity()  # type: ignore[assignment]
    prediction = head([Features(torch.tensor([[[[0.0, 4.0]]]]))], (1, 4))
    assert prediction.flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


def test_unet_widths() -> None:
    channels = [64, 64, 128, 256, 512]
    specs = [FeatureSpec(width, 2 ** (depth + 1)) for depth, width in enumerate(channels)]
    assert [block.narrow.out_channels for block in UNet(specs, 3).blocks] == [128, 64, 32, 16]
    assert [block.narrow.out_channels for block in UNet(specs[:2], 3).blocks] == [32]
    assert [block.narrow.out_channels for block in UNet([FeatureSpec(4, 2), FeatureSpec(8, 4)], 3).blocks] == [16]
    assert [block.narrow.out_channels for block in UNet(specs, 3, widths=[9, 8, 7, 6]).blocks] == [9, 8, 7, 6]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in UNet(SPECS, 3, norm=False).modules())


def test_unet_sees_fine_detail_and_far_context() -> None:
    torch.manual_seed(0)
    head = UNet(SPECS, 1).eval()
    features = pyramid(1, 64, 64)
    plain = head(features, (64, 64))

    def reach(level: int) -> Tensor:
        """Where the prediction moves when one cell of a level does."""
        changed = [Features(f.tensor.clone()) for f in features]
        changed[level].tensor[..., 0, 0] += 10
        return (head(changed, (64, 64)) - plain).abs()[0, 0] > 1e-6

    fine, deep = reach(0), reach(2)
    assert fine[0, 0]
    assert not fine[12:, :].any()
    assert not fine[:, 12:].any()
    assert deep[:16, :16].float().mean() > fine[:16, :16].float().mean()


def test_unet_on_one_map_is_a_pixelwise_layer() -> None:
    head = UNet([FeatureSpec(3, 1)], 2)
    tensor = torch.randn(2, 3, 6, 5)
    expected = torch.einsum("oi,bihw->bohw", head.predict.weight[:, :, 0, 0], tensor) + head.predict.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(head([Features(tensor)], (6, 5)), expected)


@pytest.mark.parametrize(("head", "arguments"), DENSE_HEADS)
def test_one_row_of_one_cell_trains(head: Callable[..., Head], arguments: dict[str, object]) -> None:
    specs = [FeatureSpec(8, 2), FeatureSpec(8, 4), FeatureSpec(8, 4)]
    module = head(specs, 3, **arguments).train()
    features = [Features(torch.randn(1, 8, 1, 1)) for _ in specs]
    module(features, (2, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert all(buffer.isfinite().all() for buffer in module.buffers())


def test_batch_norm_is_torchs_but_for_single_values() -> None:
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    tensor = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(ours(tensor), theirs(tensor), rtol=0, atol=0)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    single = ours(tensor[:1, :, :1, :1])
    torch.testing.assert_close(ours.state_dict(), before)
    torch.testing.assert_close(single, theirs.eval()(tensor[:1, :, :1, :1]))


@pytest.mark.parametrize("head", [Linear, MLP, FCN, UNet])
def test_refuses_what_is_not_a_map(head: Callable[..., Head]) -> None:
    with pytest.raises(ConfigError, match=f"{head.__name__} needs feature maps.*tokens"):
        head([FeatureSpec(8, 2), FeatureSpec(8, 4, "tokens")], 3)
    with pytest.raises(ConfigError, match=head.__name__):
        head([], 3)


@pytest.mark.parametrize(
    ("head", "arguments", "match"),
    [
        (Linear, {"pool": 0}, "Linear: pool is 0"),
        (Linear, {"dropout": 1.0}, "dropout"),
        (MLP, {"hidden": [4, 0]}, r"MLP.*\[4, 0\]"),
        (MLP, {"pool": -1}, "pool is -1"),
        (FCN, {"width": 0}, "FCN: width is 0"),
        (FCN, {"dropout": -0.1}, "dropout"),
        (UNet, {"widths": [8]}, r"UNet: widths is \[8\], expected 2 numbers"),
        (UNet, {"widths": [8, 0]}, "widths"),
    ],
)
def test_bad_arguments(head: Callable[..., Head], arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        head(SPECS, 3, **arguments)


@pytest.mark.filterwarnings("ignore:[\\s\\S]*JsonargparseDeprecationWarning", "ignore:[\\s\\S]*instantiate_classes")
def test_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--head", type=Callable[[Sequence[FeatureSpec], int], Head] | None, default=None)
    text = "head: {class_path: MLP, init_args: {hidden: [64], pool: 4}}"
    config = parser.parse_string(text)
    assert config.head.class_path.startswith("mtl_lightning.heads")
    assert parser.parse_string(parser.dump(config)) == config
    head = parser.instantiate_classes(config).head(SPECS, 5)
    assert isinstance(head, MLP)
    assert head.pool == 4
    assert [layer.out_features for layer in head.layers if isinstance(layer, nn.Linear)] == [64, 5]
    for name, short in {"Linear": Linear, "FCN": FCN, "UNet": UNet, "mtl_lightning.heads.UNet": UNet}.items():
        built = parser.instantiate_classes(parser.parse_args(["--head", name])).head(SPECS, 5)
        assert type(built) is short
    assert parser.parse_args([]).head is None
    with pytest.raises(Exception, match="hiden"):
        parser.parse_string("head: {class_path: MLP, init_args: {hiden: [64]}}")


class Network(nn.Module):
    """A tiny model from image to two predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SmallCNN([8, 12])
        self.vector, self.dense = Linear(self.encoder.specs, 3), UNet(self.encoder.specs, 2)

    def forward(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features, size = self.encoder(Features(image, valid)), (image.shape[-2], image.shape[-1])
        return self.vector(features, size), self.dense(features, size)


@pytest.mark.skipif(torch.__version__ < "2.14", reason="max-pooling of an unknown height cannot be exported by torch 2.11")
def test_export_for_any_number_and_size_of_images() -> None:
    network = Network().eval()
    rows, height, width = (
        torch.export.Dim(name, min=1 if name == "rows" else 16, max=512) for name in ("rows", "height", "width")
    )
    program = torch.export.export(network, (torch.rand(2, 3, 33, 50),), dynamic_shapes=({0: rows, 2: height, 3: width},))
    for size in [(2, 33, 50), (1, 64, 64), (5, 47, 101)]:
        image = torch.rand(size[0], 3, *size[1:])
        torch.testing.assert_close(program.module()(image), network(image))


def test_export_with_padding() -> None:
    network = Network().eval()
    given = torch.rand(2, 3, 33, 50), (torch.rand(2, 1, 33, 50) > 0.2).float()
    torch.testing.assert_close(torch.export.export(network, given).module()(*given), network(*given))


@pytest.mark.parametrize("regions", [1, 2, 3])
def test_regions_are_those_of_each_picture(regions: int) -> None:
    maps, padded, valid = torch.randn(2, 4, 6, 9), torch.zeros(2, 4, 10, 12), torch.zeros(2, 1, 10, 12)
    padded[0, :, :6, :9], valid[0, :, :6, :9] = maps[0], 1
    padded[1, :, :6, :5], valid[1, :, :6, :5] = maps[1, :, :, :5], 1
    together = pool(Features(padded, valid), regions)
    assert torch.allclose(together[:1], pool(Features(maps[:1]), regions), atol=1e-6)
    assert torch.allclose(together[1:], pool(Features(maps[1:, :, :, :5]), regions), atol=1e-6)
