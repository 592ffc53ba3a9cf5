"""Architectures with a trunk for each task: stitches, fusions, and a penalty that holds them together."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mtl_lightning.architectures import NDDR, Architecture, CrossStitch, SoftSharing, SplitAt
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.encoders.base import ImageEncoder, Stage
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.gradients.engine import EngineOptions, check
from mtl_lightning.main import main
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Regression, Task
from mtl_lightning.weighting import PCGrad
from tests.sharing import assert_owners, calls, gradients, pictures, small

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
TASKS = ["a", "b", "c"]
Build = Callable[[SmallCNN], Architecture]


def plain(encoder: SmallCNN) -> Architecture:
    """Fusion that is nothing but a 1x1 convolution."""
    return NDDR(encoder, TASKS, same=1.0, norm=False, relu=False)


@pytest.mark.parametrize("channels", [True, False])
def test_identity_stitches_are_separate_networks(channels: bool) -> None:
    check_separate(CrossStitch(small(4, 6), TASKS, same=1.0, channels=channels).double())


def test_identity_fusions_are_separate_networks() -> None:
    check_separate(plain(small(4, 6)).double())


def check_separate(model: Architecture) -> None:
    source, trunks = pictures(), model.encoders
    alone = [copy.deepcopy(trunk) for trunk in trunks]  # type: ignore[union-attr]
    assert not torch.equal(*(trunk.stages[0].body.conv.weight for trunk in alone[:2]))  # type: ignore[union-attr]
    found = model(source)
    for task, trunk, other in zip(TASKS, trunks, alone, strict=True):  # type: ignore[arg-type]
        expected = other(source)
        for level, wanted in zip(found[task], expected, strict=True):
            torch.testing.assert_close(level.tensor, wanted.tensor)
        torch.testing.assert_close(gradients(found[task], trunk), gradients(expected, other))


def test_a_stitch_is_the_sum_of_the_paper() -> None:
    model, source = CrossStitch(small(4, 6), TASKS, stages=[1]).double(), pictures()
    with torch.no_grad():
        for parameter in model.units.parameters():
            parameter.copy_(torch.rand_like(parameter))
    first = [trunk.stages[0](trunk.start(source)).tensor for trunk in model.trunks()]
    found = model(source)["b"]
    weight = model.mixers()[1][1].weight
    mixed = sum(weight[k][None, :, None, None] * first[k] for k in range(3))
    torch.testing.assert_close(found[0].tensor, mixed)  # type: ignore[arg-type]
    torch.testing.assert_close(found[1].tensor, model.trunks()[1].stages[1](Features(mixed)).tensor)  # type: ignore[arg-type, call-arg]
    table = model.tables()["stage 1"]
    torch.testing.assert_close(table.values[1], weight.detach().mean(1))  # type: ignore[operator, union-attr]
    assert (table.rows, table.columns, table.values.shape) == (TASKS, TASKS, (3, 3))


def test_padding_stays_0_in_a_fusion() -> None:
    model, source = NDDR(small(4), ["a", "b"]).double(), pictures()
    source.valid = torch.ones(2, 1, 16, 16, dtype=torch.float64)
    source.valid[1, :, 8:] = 0
    with torch.no_grad():
        for mixer in model.mixers()[1]:
            mixer.norm.bias.fill_(1.0)  # type: ignore[union-attr, operator]
    found = model(source)["a"][0].tensor
    assert found[1, :, 4:].abs().max() == 0
    assert found[0, :, 4:].abs().max() > 0


def test_a_fusion_is_convolution_norm_and_relu() -> None:
    model, source = NDDR(small(4, 6), TASKS, stages=[2]).double(), pictures()
    levels = [trunk(source)[1].tensor for trunk in model.trunks()]
    own, others = levels[1], levels[0] + levels[2]
    mixed = 0.9 * own + 0.05 * others
    spread, mean = torch.var_mean(mixed, dim=(0, 2, 3), correction=0, keepdim=True)
    expected = ((mixed - mean) / (spread + 1e-5).sqrt()).relu()
    torch.testing.assert_close(model(source)["b"][1].tensor, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.tables()["stage 2"].values[1], torch.tensor([0.05, 0.9, 0.05]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "build",
    [
        lambda encoder: CrossStitch(encoder, TASKS),
        lambda encoder: CrossStitch(encoder, TASKS, channels=False, stages=[2, 1]),
        lambda encoder: NDDR(encoder, TASKS),
        lambda encoder: NDDR(encoder, TASKS, stages=[1]),
        lambda encoder: SoftSharing(encoder, TASKS),
        lambda encoder: CrossStitch(encoder, ["a"]),
    ],
)
def test_owners(build: Build) -> None:
    assert_owners(build(small(4, 5, 6)).double(), pictures())


def test_what_is_shared() -> None:
    model = CrossStitch(small(4, 5, 6), TASKS, stages=[1, 2])
    owners, units = model.owners(), model.mixers()
    assert [len(owners[next(stage.parameters())]) for stage in model.trunks()[1].stages] == [3, 3, 1]
    assert [owners[units[level][1].weight] for level in (1, 2)] == [frozenset(TASKS), frozenset("b")]  # type: ignore[index]
    alone = CrossStitch(small(4, 5), ["a"])
    assert (list(alone.parameters()), alone.tables()) == (list(alone.trunks()[0].parameters()), {})


def test_only_what_the_tasks_need_runs() -> None:
    source = pictures()
    assert calls(CrossStitch(small(4, 5, 6), TASKS, stages=[2]).double(), source, ["b"]) == [3, 3, 1]
    assert calls(NDDR(small(4, 5, 6), TASKS).double(), source, ["b"]) == [3, 3, 3]
    assert calls(SoftSharing(small(4, 5, 6), TASKS), source, ["b", "c"]) == [2, 2, 2]
    model = CrossStitch(small(4, 5, 6), TASKS, stages=[2]).double().eval()
    assert list(model(source, ["c", "a"])) == ["a", "c"]
    for level, other in zip(model(source, ["c"])["c"], model(source)["c"], strict=True):
        torch.testing.assert_close(level.tensor, other.tensor, rtol=0, atol=0)


class Half(nn.Module):
    """Gives map and token."""

    def forward(self, features: Features) -> Features:
        token = features.tensor.mean((2, 3)) if features.token is None else features.token
        return Features(features.tensor, features.valid, token * 2)


class Tokens(Stage):
    """A stage whose class token goes another way than its map."""

    def step(self, features: Features) -> Features:
        result: Features = self.body(features)
        return result


@pytest.mark.parametrize("build", [CrossStitch, NDDR])
def test_tokens_and_padding_go_through_units(build: Callable[..., Architecture]) -> None:
    encoder = ImageEncoder([Tokens(Half(), FeatureSpec(3, token=True)) for _ in range(2)], 3, 0.0, 1.0)
    options = {} if build is CrossStitch else {"norm": False, "relu": False}
    model = build(encoder, ["a", "b"], same=0.75, **options).double()
    with torch.no_grad():
        for parameter in [*model.parameters()][: 2 if build is CrossStitch else 4]:
            # The first task of the first unit takes three times as much as it did, with a bias that padding must not see.
            parameter.copy_(parameter * 3 + (0.5 if parameter.ndim == 1 else 0))
    source = pictures(size=4)
    source.valid = torch.ones(2, 1, 4, 4, dtype=torch.float64)
    source.valid[1, :, 2:] = 0
    source.tensor = source.tensor * source.valid
    found = model(source)["a"]
    assert found[0].valid is not None
    assert found[0].tensor[1, :, 2:].abs().max() == 0
    assert found[0].token is not None
    assert found[1].token is not None
    bias = 0.0 if build is CrossStitch else 0.5
    torch.testing.assert_close(found[0].token, 6 * source.tensor.mean((2, 3)) + bias)
    torch.testing.assert_close(found[0].tensor[0], 3 * source.tensor[0] + bias)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_the_penalty_is_the_squared_distance_and_pulls_each_trunk_alike(number: int) -> None:
    model = SoftSharing(small(4, 5), list("abcde")[:number], strength=0.5)
    trunks = [list(trunk.parameters()) for trunk in model.trunks()]
    assert model.penalties()["distance"].item() == pytest.approx(0, abs=1e-20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    pairs = [(one, other) for one in range(number) for other in range(one)]
    expected = sum(
        (2 / number) * 0.5 * (mine - theirs).square().sum()
        for one, other in pairs
        for mine, theirs in zip(trunks[one], trunks[other], strict=True)
    )
    distance = model.penalties()["distance"]
    torch.testing.assert_close(distance, expected)
    every = [parameter for trunk in trunks for parameter in trunk]
    found, wanted = (torch.autograd.grad(of, every) for of in (distance, expected))  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted)
    mean = torch.stack([trunk[0] for trunk in trunks]).mean(0)
    torch.testing.assert_close(found[0], 4 * 0.5 * (trunks[0][0] - mean))


def test_a_single_task_has_no_distance() -> None:
    assert SoftSharing(small(4), ["a"]).penalties() == {}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda encoder: CrossStitch(encoder, TASKS, same=1.5), r"same is 1\.5, expected 0 to 1"),
        (lambda encoder: NDDR(encoder, TASKS, same=-0.1), r"same is -0\.1, expected 0 to 1"),
        (lambda encoder: CrossStitch(encoder, TASKS, same=math.nan), r"same is nan, expected 0 to 1"),
        (lambda encoder: CrossStitch(encoder, TASKS, stages=[0]), r"stages is 0, expected 1 to 2: CrossStitch counts"),
        (lambda encoder: NDDR(encoder, TASKS, stages=[1, 3]), r"stages is 3, expected 1 to 2: NDDR counts"),
        (lambda encoder: CrossStitch(encoder, TASKS, stages=[]), r"stages is \[\], expected different stages of the"),
        (lambda encoder: NDDR(encoder, TASKS, stages=[1, 1]), r"stages is \[1, 1\], expected different stages of the"),
        (lambda encoder: SoftSharing(encoder, TASKS, strength=-1), r"strength is -1, expected a number >= 0"),
    ],
)
def test_bad_options(build: Build, message: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture\.init_args\." + message):
        build(small(4, 6))


@pytest.mark.parametrize("build", [SoftSharing, lambda encoder, tasks: SplitAt(encoder, tasks, 0)])
def test_gradient_methods_refuse_trunks_that_nobody_shares(build: Callable[..., Architecture]) -> None:
    architecture = build(small(4, 6), ["a", "b"])
    tasks: dict[str, Task] = {name: Regression(names=["x"]) for name in ("a", "b")}
    with pytest.raises(ConfigError, match=f"weighting PCGrad balances .* {type(architecture).__name__} shares none"):
        check(PCGrad(), MultiTaskModel(tasks, architecture), EngineOptions())


@pytest.mark.slow
def test_the_distance_is_logged_and_falls(tmp_path: Path) -> None:
    strength = "--model.architecture.init_args.strength"
    found = {}
    for value in ("0.001", "0.1"):
        main(["fit", "--config", str(CONF), "--runs", str(tmp_path / value), "--model.architecture=SoftSharing",
              f"{strength}={value}", "--trainer.log_every_n_steps=1"])  # fmt: skip
        rows = [line.split(",") for line in (tmp_path / value / "tiny" / "metrics.csv").read_text().splitlines()]
        found[value] = [float(row[3]) / float(value) for row in rows if row[2] == "penalty/distance"]
    assert found["0.001"][0] == pytest.approx(0, abs=1e-9)
    assert found["0.1"][0] == pytest.approx(0, abs=1e-9)
    assert 0 < found["0.1"][-1] < found["0.001"][-1]
