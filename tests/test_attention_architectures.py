"""MTAN and the conditioned trunk: who owns what, how often the trunk runs, and what padding, texts and tokens do."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from mtl_lightning.architectures import MTAN, Architecture, HardSharing, TaskConditioned
from mtl_lightning.encoders import ConvNeXt, Encoder, SmallCNN, Swin
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, pool
from mtl_lightning.weighting import Equal, PCGrad
from tests.one_trunk import (
    TASKS,
    TextEncoder,
    check_owners,
    check_padding,
    check_token,
    counted,
    picture,
    small,
    step_of,
    strided,
    text,
    transformer,
    wake,
)

FILM: dict[str, Any] = {"film": [1, 3], "concatenate": False}


def mtan(encoder: Encoder | None = None, tasks: list[str] = TASKS, **options: Any) -> Architecture:
    return wake(MTAN(encoder or small(), tasks, **{"norm": "layer", **options}))


def conditioned(encoder: Encoder | None = None, tasks: list[str] = TASKS, **options: Any) -> Architecture:
    return wake(TaskConditioned(encoder or small(), tasks, width=4, **options))


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_attention_belongs_to_its_task(norm: str) -> None:
    check_owners(mtan(norm=norm), picture())


@pytest.mark.parametrize("options", [{}, FILM, {"film": [2]}])
def test_embeddings_belong_to_their_task_and_what_reads_them_to_all(options: dict[str, Any]) -> None:
    architecture = conditioned(small(norm=True), **options)
    check_owners(architecture, picture())
    owners = {name: architecture.owners()[value] for name, value in architecture.named_parameters()}
    assert owners["embeddings.color"] == {"color"}
    assert all(users == set(TASKS) for name, users in owners.items() if name.startswith("film"))


@pytest.mark.parametrize("method", [Equal, PCGrad])
def test_attention_learns_from_its_task(method: type) -> None:
    """Under gradient methods, too, which balance shared parameters: attention is not one of these."""
    architecture = mtan(width=0.5)
    losses = step_of(architecture, method(), [], [])
    for task, loss in losses.items():
        parameters = list(architecture.attend[task].parameters())  # type: ignore[index]
        expected = torch.autograd.grad(loss, parameters, retain_graph=True)
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert gradient.any() and parameter.grad is not None
            assert torch.allclose(parameter.grad, gradient, rtol=1e-9, atol=1e-14)


def test_masks_are_the_shares_that_are_let_through() -> None:
    architecture = mtan()
    source = picture()
    with torch.no_grad():
        maps, trunk = architecture.attention(source), architecture.encoder(source)
    assert list(maps) == TASKS
    for level, spec in enumerate(architecture.specs("color")):
        size = 16 // spec.stride
        assert maps["color"][level].shape == (3, 1, size, size)
        assert float(maps["color"][level].min()) > 0 and float(maps["color"][level].max()) < 1
        assert not torch.allclose(maps["color"][level], maps["shade"][level])
    # A mask of a single value is the ratio of what comes out and what goes in.
    for module in architecture.attend["color"].masks:
        nn.init.zeros_(module[-2].weight)
        nn.init.constant_(module[-2].bias, math.log(3))
    for before, after in zip(trunk, architecture(source)["color"], strict=True):
        assert torch.allclose(after.tensor, 0.75 * before.tensor)
    assert architecture.tables() == {}
    architecture.watch(True)
    architecture(source, ["color"])
    table = architecture.tables()["attention"]
    assert (table.rows, table.columns) == (["color"], ["stage 1", "stage 2", "stage 3"])
    assert torch.allclose(table.values, torch.full((1, 3), 0.75, dtype=torch.float64))


def test_width_is_that_of_the_hidden_channels() -> None:
    architecture = MTAN(small(), ["a"], width=0.5, norm="none")
    attend = architecture.attend["a"]
    assert [mask[0].weight.shape[:2] for mask in attend.masks] == [(2, 4), (3, 6 + 3), (4, 8 + 4)]  # type: ignore[union-attr, index]
    assert [carry.convolution.weight.shape for carry in attend.carries] == [(3, 4, 3, 3), (4, 6, 3, 3)]  # type: ignore[union-attr]


def test_the_trunk_runs_as_often_as_it_must() -> None:
    for architecture, often in (
        (mtan(), [1, 1, 1]),
        (conditioned(), [1, 1, 1]),
        (conditioned(film=[3]), [1, 1, 1]),
        (conditioned(film=[2]), [1, 1, 2]),
        (conditioned(film=[1, 3]), [1, 2, 2]),
    ):
        with counted(architecture) as calls:
            both = architecture(picture())
        assert calls == often
        with counted(architecture) as calls:
            one = architecture(picture(), ["shade"])
        assert calls == [1, 1, 1] and list(one) == ["shade"]
        for alone, beside in zip(one["shade"], both["shade"], strict=True):
            assert torch.allclose(alone.tensor, beside.tensor, rtol=1e-12)


def test_film_starts_as_the_trunk_and_then_scales_and_shifts() -> None:
    encoder, source = small(norm=True).eval(), picture()
    architecture = TaskConditioned(encoder, TASKS, film=[1, 2, 3], concatenate=False).double().eval()
    trunk = HardSharing(encoder, TASKS)(source)["color"]
    for pyramid in architecture(source).values():
        assert all(torch.equal(one.tensor, other.tensor) for one, other in zip(pyramid, trunk, strict=True))
    assert not architecture.tables()["film"].values.any()
    with torch.no_grad():
        architecture.film["2"].bias.copy_(torch.cat([torch.full((8,), 0.5), torch.full((8,), -2.0)]))  # type: ignore[union-attr, operator]
    for pyramid in architecture(source).values():
        assert torch.allclose(pyramid[-1].tensor, 1.5 * trunk[-1].tensor - 2)
    assert torch.allclose(architecture.tables()["film"].values[:, 2], torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("ratio", [0.1, 2.0])
def test_the_embedding_is_as_long_as_the_ratio_says(ratio: float) -> None:
    architecture = conditioned(ratio=ratio)
    pyramids = architecture(picture())
    for task, pyramid in pyramids.items():
        assert pyramid[-1].tensor.shape[1] == architecture.specs(task)[-1].channels == 8 + 4
        pooled = pool(pyramid[-1])
        lengths = pooled[:, 8:].norm(dim=1) / pooled[:, :8].norm(dim=1)
        assert torch.allclose(lengths, torch.full_like(lengths, ratio))
    assert torch.equal(pyramids["color"][-1].tensor[:, :8], pyramids["shade"][-1].tensor[:, :8])
    assert not torch.allclose(pyramids["color"][-1].tensor[:, 8:], pyramids["shade"][-1].tensor[:, 8:])


def test_features_of_nothing_but_zeros_have_gradients() -> None:
    architecture = conditioned()
    loss = architecture(Features(torch.zeros(2, 3, 16, 16, dtype=torch.float64), torch.zeros(2, 1, 16, 16, dtype=torch.float64)))
    loss["color"][-1].tensor.sum().backward()
    assert all(value.grad is None or bool(value.grad.isfinite().all()) for value in architecture.parameters())


def test_each_task_has_batch_statistics_of_its_own_behind_film() -> None:
    encoder = small(norm=True)
    for stage in encoder.stages:
        stage.body.norm.momentum = 1.0
    architecture = conditioned(encoder, film=[1], concatenate=False)
    source = picture(8)
    before = encoder.stages[1].body.norm.running_mean.clone()
    trained = architecture(source)
    assert torch.equal(encoder.stages[1].body.norm.running_mean, before)
    statistics = architecture.statistics
    assert not torch.allclose(
        statistics["color"].of(0)["body.norm.running_mean"], statistics["shade"].of(0)["body.norm.running_mean"]
    )
    assert int(statistics["color"].of(0)["body.norm.num_batches_tracked"]) == 1
    architecture.eval()
    for task, pyramid in architecture(source).items():
        # With one batch's statistics evaluation does what training did, but for the unbiased variance.
        assert torch.allclose(pyramid[1].tensor, trained[task][1].tensor, rtol=0.02, atol=0.02), task


def test_one_task_alone() -> None:
    for architecture in (mtan(tasks=["color"]), conditioned(tasks=["color"], film=[1])):
        assert list(architecture(picture())) == ["color"]
        check_owners(architecture, picture())


def test_padding_changes_nothing() -> None:
    check_padding(mtan(strided()))
    check_padding(conditioned(strided(), **FILM))
    check_padding(conditioned(strided(), film=[1]), 16, 24)


def test_texts() -> None:
    for architecture in (mtan(TextEncoder()), conditioned(TextEncoder(), film=[1])):
        pyramid = architecture(text())["shade"]
        assert [level.tensor.shape[2:] for level in pyramid] == [(1, 7)] * 3
        assert not pyramid[-1].tensor[1, ..., 4:].any() and pyramid[-1].tensor[1, ..., :4].any()
        check_owners(architecture, text())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 0}, "init_args.width is 0"),
        ({"norm": "group"}, "init_args.norm is 'group', expected batch, layer or none"),
        ({"norm": "layer", "width": 0.1}, "norm is layer on a single channel"),
    ],
)
def test_bad_attention(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        MTAN(SmallCNN([4, 6]), TASKS, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"film": [3]}, "init_args.film is 3, expected 1 to 2"),
        ({"film": [0, 1]}, "init_args.film is 0, expected 1 to 2"),
        ({"film": []}, r"init_args.film is \[\], expected different stages"),
        ({"film": [1, 1]}, r"init_args.film is \[1, 1\]"),
        ({"concatenate": False}, "film is null and concatenate is false"),
        ({"ratio": 0.0}, "width is 16 and ratio 0.0"),
        ({"width": 1}, "width is 1 and ratio 1.0"),
    ],
)
def test_bad_conditions(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TaskConditioned(SmallCNN([4, 6]), TASKS, **options)


def test_class_tokens() -> None:
    for architecture in (
        mtan(transformer()),
        conditioned(transformer(), film=[1]),
        conditioned(transformer(), **FILM | {"film": [2]}),
    ):
        check_owners(architecture, picture())
        check_token(architecture)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Swin, ConvNeXt])
def test_encoder_families(kind: type[Encoder]) -> None:
    torch.manual_seed(0)
    encoder, source = kind().eval(), Features(torch.rand(2, 3, 64, 64))
    for architecture in (MTAN(encoder, TASKS, 0.1), TaskConditioned(encoder, TASKS, [1, 3])):
        pyramid = architecture(source, ["color"])["color"]
        assert [level.tensor.shape[1] for level in pyramid] == [spec.channels for spec in architecture.specs("color")]
        assert [level.tensor.shape[-1] for level in pyramid] == [16, 8, 4, 2]
        own = [value for value, users in architecture.owners().items() if users == {"color"}]
        gradients = torch.autograd.grad(pyramid[-1].tensor.pow(2).sum(), own)
        assert all(gradient.any() for gradient in gradients)


@pytest.mark.slow
def test_attention_is_exported() -> None:
    from mtl_lightning.model import MultiTaskModel
    from mtl_lightning.tasks import Classification

    tasks = {name: Classification(classes=["a", "b"]) for name in TASKS}
    model = MultiTaskModel(tasks, MTAN(SmallCNN([4, 6]), TASKS)).eval()
    images = torch.rand(5, 3, 16, 16)
    program = torch.export.export(
        model, ({"image": images[:2]},), dynamic_shapes=({"image": {0: torch.export.Dim("batch")}},), strict=False
    )
    for name, value in program.module()({"image": images}).items():
        assert torch.allclose(value, model({"image": images})[name], atol=1e-6)
