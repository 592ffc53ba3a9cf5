"""Heads: values by hand, padding, sizes, gradients, configuration and export."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from mtl_lightning.encoders import SmallCNN
from mtl_lightning.encoders.base import ImageEncoder, Stage
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec, pool
from mtl_lightning.heads import ASPP, FCN, FPN, MLP, AttentionPooling, Head, Linear, UNet
from mtl_lightning.heads.base import need_pyramid
from mtl_lightning.heads.blocks import BatchNorm, CellNorm, VectorBatchNorm

SPECS = [FeatureSpec(6, 2), FeatureSpec(10, 4), FeatureSpec(12, 8)]
VECTOR_HEADS = [
    *((Linear, {}), (Linear, {"pool": 3}), (Linear, {"norm": "batch"}), (Linear, {"norm": "layer"})),
    *((MLP, {}), (MLP, {"hidden": [7, 5], "pool": 2}), (MLP, {"hidden": []}), (MLP, {"norm": "batch"}), (MLP, {"norm": "layer"})),
    *((AttentionPooling, {}), (AttentionPooling, {"queries": 3, "heads": 2, "width": 8, "norm": "layer"})),
]
DENSE_HEADS = [
    *((FCN, {}), (FCN, {"width": 4}), (FCN, {"norm": "layer"}), (FCN, {"norm": "none"})),
    *((UNet, {}), (UNet, {"widths": [8, 4], "norm": "none"}), (UNet, {"norm": "layer"})),
    *((ASPP, {}), (ASPP, {"width": 8, "rates": [1, 2], "low_level": True}), (ASPP, {"norm": "layer"}), (ASPP, {"norm": "none"})),
    *((FPN, {}), (FPN, {"width": 8, "norm": "none"}), (FPN, {"norm": "layer"})),
]


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
    read = {UNet: features, FPN: features, ASPP: features[1:] if "low_level" in arguments else features[-1:]}.get(
        head, features[-1:]
    )
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


EVERY_HEAD = [Linear, MLP, AttentionPooling, FCN, UNet, ASPP, FPN]


@pytest.mark.parametrize("kind", EVERY_HEAD)
def test_dropout_only_in_training(kind: Callable[..., Head]) -> None:
    features, head = pyramid(2, 32, 32), kind(SPECS, 3, dropout=0.5)
    head.train()
    assert not torch.equal(head(features, (32, 32)), head(features, (32, 32)))
    head.eval()
    assert torch.equal(head(features, (32, 32)), head(features, (32, 32)))


@pytest.mark.parametrize(
    ("head", "arguments"),
    [(Linear, {}), (MLP, {"hidden": [9]}), (AttentionPooling, {}), (AttentionPooling, {"queries": 2, "heads": 2})],
)
def test_padding_changes_nothing(head: Callable[..., Head], arguments: dict[str, object]) -> None:
    torch.manual_seed(0)
    # Values in eighths and powers of two as divisors: sums and means are exact in any order.
    encoder = ImageEncoder([Stage(nn.Conv2d(3, 4, 1), FeatureSpec(4, 1))], 3, mean=0.5, std=0.25)
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
    assert not any(isinstance(module, nn.BatchNorm2d) for module in UNet(SPECS, 3, norm="none").modules())


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


def test_several_maps_of_one_stride_are_no_pyramid() -> None:
    specs = [FeatureSpec(8, 8), FeatureSpec(8, 8)]
    for head in (UNet, FPN, partial(ASPP, low_level=True)):
        with pytest.raises(ConfigError, match=r"needs a pyramid.*2 maps, all of stride 8\. .*FCN or ASPP"):
            head(specs, 3)
    for head in (FCN, ASPP):
        assert head(specs, 3).eval()([Features(torch.randn(2, 8, 3, 3)) for _ in specs], (24, 24)).shape == (2, 3, 24, 24)
    with pytest.raises(ConfigError, match="low_level is true, but the encoder gives a single map"):
        ASPP(specs[:1], 3, low_level=True)
    assert FPN(specs[:1], 3).eval()([Features(torch.randn(2, 8, 3, 3))], (24, 24)).shape == (2, 3, 24, 24)
    need_pyramid("UNet", SPECS)


@pytest.mark.parametrize(("head", "arguments"), DENSE_HEADS + VECTOR_HEADS)
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


@pytest.mark.parametrize("head", EVERY_HEAD)
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
        (AttentionPooling, {"queries": 0}, "AttentionPooling: queries is 0"),
        (AttentionPooling, {"heads": 5}, "heads 5 and width 12.*divide"),
        (ASPP, {"rates": []}, r"ASPP: width is 128 and rates \[\]"),
        (ASPP, {"width": 0}, "ASPP: width is 0"),
        (FPN, {"width": 0}, "FPN: width is 0"),
        *((head, {"dropout": 1.0}, rf"{head.__name__}: dropout is 1.0, expected a share in \[0, 1\)") for head in EVERY_HEAD),
        *((head, {"norm": "group"}, rf"{head.__name__}: norm is 'group'") for head in EVERY_HEAD),
        (FCN, {"width": 1, "norm": "layer"}, "FCN: norm is layer on a single channel"),
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
    named = {head.__name__: head for head in EVERY_HEAD} | {"mtl_lightning.heads.UNet": UNet}
    for name, short in named.items():
        built = parser.instantiate_classes(parser.parse_args(["--head", name])).head(SPECS, 5)
        assert type(built) is short
    assert parser.parse_args([]).head is None
    with pytest.raises(Exception, match="hiden"):
        parser.parse_string("head: {class_path: MLP, init_args: {hiden: [64]}}")


def test_queries_of_zero_are_the_average() -> None:
    head, pooled = AttentionPooling(SPECS, 3, queries=2, heads=3), Linear(SPECS, 3)
    with torch.no_grad():
        head.query.zero_()
        head.values.weight.copy_(torch.eye(12))
        head.values.bias.zero_()
        head.linear.weight.copy_(torch.cat([pooled.linear.weight / 2, pooled.linear.weight / 2], 1))
        head.linear.bias.copy_(pooled.linear.bias)
    features = pyramid(2, 64, 40)
    features[-1].valid = torch.rand(2, 1, 8, 5)
    features[-1].valid[1, :, 3:] = 0
    torch.testing.assert_close(head(features, (64, 40)), pooled(features, (64, 40)))


def test_attention_by_hand() -> None:
    head = AttentionPooling([FeatureSpec(2, 4)], 1, heads=2)
    with torch.no_grad():
        head.query.copy_(torch.tensor([[[2.0], [0.0]]]))
        head.keys.weight.copy_(torch.eye(2))
    # The first half of the query sees log 4 more in the second cell, the other half sees nothing.
    tensor = torch.tensor([[0.0, 5.0], [math.log(2.0), -7.0]]).T.reshape(1, 2, 1, 2)
    weights = head.attend(Features(tensor))
    torch.testing.assert_close(weights, torch.tensor([[[[0.2, 0.8]], [[0.5, 0.5]]]]))
    padded = head.attend(Features(tensor, torch.tensor([[[[1.0, 0.0]]]])))
    assert padded.tolist() == [[[[1.0, 0.0]], [[1.0, 0.0]]]]


def test_several_queries_look_at_several_places() -> None:
    torch.manual_seed(0)
    head = AttentionPooling([FeatureSpec(4, 1)], 2, queries=2, width=4)
    tensor = torch.zeros(1, 4, 2, 2)
    tensor[0, 0, 0, 1] = tensor[0, 1, 1, 0] = 1
    with torch.no_grad():
        head.keys.weight.copy_(torch.eye(4))
        head.query.copy_(40 * torch.eye(4)[:2, None])
    assert head.attend(Features(tensor)).argmax(-1).tolist() == [[[1, 2]]]


def test_rates_follow_the_stride() -> None:
    def rates(stride: int) -> list[int]:
        head = ASPP([FeatureSpec(4, stride)], 2, width=2)
        return [branch[0].dilation[0] for branch in head.branches][1:]

    assert [rates(stride) for stride in (8, 16, 32, 64)] == [[12, 24, 36], [6, 12, 18], [3, 6, 9], [2, 3, 4]]
    assert ASPP([FeatureSpec(4, s) for s in (2, 4, 8)], 2, low_level=True).level == 1
    assert ASPP([FeatureSpec(4, s) for s in (1, 2)], 2, low_level=True).level == 0
    for rates in ([], [0], [1, 2**62]):
        with pytest.raises(ConfigError, match="rates"):
            ASPP([FeatureSpec(4, 4)], 2, rates=rates)


def test_aspp_sees_the_whole_picture_and_no_padding() -> None:
    torch.manual_seed(0)
    head = ASPP([FeatureSpec(4, 4)], 2, width=8, rates=[1]).eval()
    tensor = torch.randn(1, 4, 8, 8)
    alone = head([Features(tensor)], (8, 8))
    tensor[..., 7, 7] += 9
    assert (head([Features(tensor)], (8, 8))[..., 0, 0] - alone[..., 0, 0]).abs().min() > 1e-4
    padded, valid = torch.zeros(1, 4, 12, 10), torch.zeros(1, 1, 12, 10)
    padded[..., :8, :8], valid[..., :8, :8] = tensor, 1
    together = head([Features(padded, valid)], (12, 10))[..., :8, :8]
    torch.testing.assert_close(together, head([Features(tensor)], (8, 8)))


def test_fpn_by_hand() -> None:
    head = FPN([FeatureSpec(1, 1), FeatureSpec(1, 2)], 1, width=1, norm="none").eval()
    with torch.no_grad():
        for lateral, smooth, factor in zip(head.lateral, head.smooth, (1.0, 10.0), strict=True):
            lateral.weight.fill_(factor)
            lateral.bias.zero_()
            smooth[0].weight.zero_()
            smooth[0].weight[..., 1, 1] = 1
            smooth[0].bias.zero_()
        head.predict.weight.fill_(1.0)
        head.predict.bias.fill_(0.5)
    fine, coarse = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[5.0]]]])
    # At the finest level (fine + 10 coarse), and the coarse level's own 10 coarse on top.
    torch.testing.assert_close(head([Features(fine), Features(coarse)], (2, 2)), fine + 50 + 50 + 0.5)


def test_fpn_far_from_the_border_does_not_see_padding() -> None:
    torch.manual_seed(0)
    head = FPN(SPECS, 2, width=8).eval()
    features = pyramid(1, 64, 64)
    alone = head(features, (64, 64))
    padded = []
    for feature in features:
        height, width = feature.tensor.shape[-2:]
        tensor, valid = torch.zeros(1, feature.tensor.shape[1], height * 2, width * 2), torch.zeros(1, 1, height * 2, width * 2)
        tensor[..., :height, :width], valid[..., :height, :width] = feature.tensor, 1
        padded.append(Features(tensor, valid))
    together = head(padded, (128, 128))
    torch.testing.assert_close(together[..., :32, :32], alone[..., :32, :32])


def test_biases_of_the_fpn_do_not_fill_padding() -> None:
    torch.manual_seed(0)
    head = FPN([FeatureSpec(4, 1), FeatureSpec(4, 2)], 2, width=8).eval()
    with torch.no_grad():
        head.lateral[0].bias += 5
        head.lateral[1].weight.zero_()
        head.lateral[1].bias.zero_()
        # The coarse level gives a constant, which resizing smears over borders.
        head.smooth[1][1].weight.zero_()
    fine, coarse = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)
    alone = head([Features(fine), Features(coarse)], (8, 8))
    padded = []
    for tensor in (fine, coarse):
        side = tensor.shape[-1]
        valid = F.pad(torch.ones(1, 1, side, side), (0, side, 0, side))
        padded.append(Features(F.pad(tensor, (0, side, 0, side)), valid))
    torch.testing.assert_close(head(padded, (16, 16))[..., :8, :8], alone)


def test_layer_norm_is_of_each_cell_alone() -> None:
    tensor = torch.randn(3, 6, 2, 5)
    normed = CellNorm(6)(tensor)
    torch.testing.assert_close(normed.mean(1), torch.zeros(3, 2, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(normed[1, :, 1, 2], nn.LayerNorm(6)(tensor[1, :, 1, 2]))
    vector = VectorBatchNorm(6)
    torch.testing.assert_close(vector(tensor[..., 0, 0]), nn.BatchNorm1d(6)(tensor[..., 0, 0]))
    assert vector(tensor[:1, :, 0, 0]).shape == (1, 6)


def test_default_heads_keep_the_keys_of_checkpoints() -> None:
    keys = {
        Linear: ["linear.weight", "linear.bias"],
        MLP: ["layers.0.weight", "layers.0.bias", "layers.3.weight", "layers.3.bias"],
        FCN: ["layers.0.0.weight", "layers.0.1.weight", "layers.0.1.bias", "layers.2.weight", "layers.2.bias"],
    }
    for head, expected in keys.items():
        assert [name for name, _ in head(SPECS, 2).named_parameters()] == expected
    names = [name for name, _ in UNet(SPECS, 2).named_parameters()]
    assert names[:5] == [
        f"blocks.0.{name}" for name in ("narrow.weight", "narrow.bias", "merge.0.0.weight", "merge.0.1.weight", "merge.0.1.bias")
    ]
    assert len(names) == 18


@pytest.mark.parametrize("head", [AttentionPooling, ASPP, FPN])
def test_precisions(head: Callable[..., Head]) -> None:
    features, module = pyramid(2, 16, 16), head(SPECS, 2).eval()
    for feature in features:
        feature.valid = torch.ones(2, 1, *feature.tensor.shape[-2:])
        feature.valid[1, :, -1] = 0
    single = module(features, (16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(features, (16, 16)).float(), single, rtol=0.1, atol=0.1)
    double = [Features(feature.tensor.double(), feature.valid.double()) for feature in features]
    torch.testing.assert_close(module.double()(double, (16, 16)), single.double(), rtol=1e-3, atol=1e-4)


class Network(nn.Module):
    """A tiny model from image to predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SmallCNN([8, 12])
        heads = (Linear, AttentionPooling, UNet, partial(ASPP, low_level=True, width=8), partial(FPN, width=8))
        self.heads = nn.ModuleList(head(self.encoder.specs, 3) for head in heads)

    def forward(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
        features, size = self.encoder(Features(image, valid)), (image.shape[-2], image.shape[-1])
        return tuple(head(features, size) for head in self.heads)


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
