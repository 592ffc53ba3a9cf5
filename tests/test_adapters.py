"""Adapters beside a trunk and in series with it, and low-rank updates of its weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_lightning.architectures import Adapter, Architecture, BottleneckAdapter, HardSharing, LoRA, TaskAdapters
from mtl_lightning.encoders import ConvNeXt, Encoder, SmallCNN, Swin
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features
from mtl_lightning.freeze import Freeze, Freezer
from mtl_lightning.weighting import PCGrad
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

Make = Callable[[Encoder, list[str]], Architecture]
KINDS: dict[str, Make] = {
    "beside": TaskAdapters,
    "series": lambda encoder, tasks: TaskAdapters(encoder, tasks, feed_back=True),
    "lora": LoRA,
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def frozen(architecture: Architecture) -> Freezer:
    freezer = Freezer(Freeze(), architecture)
    freezer.update(0)
    return freezer


@kinds
@pytest.mark.parametrize("norm", [True, False])
def test_at_zero_every_task_has_the_trunk(make: Make, norm: bool) -> None:
    encoder = small(norm)
    architecture = make(encoder, TASKS).double()
    # In training, too: what is at zero has no part in batch statistics.
    trunk = HardSharing(encoder, TASKS)(picture())["color"]
    for pyramid in architecture(picture()).values():
        assert all(torch.equal(one.tensor, other.tensor) for one, other in zip(pyramid, trunk, strict=True))
    wake(architecture)
    for level in range(3):
        assert not torch.allclose(architecture(picture())["color"][level].tensor, trunk[level].tensor)


@kinds
def test_owners(make: Make) -> None:
    check_owners(wake(make(small(norm=True), TASKS)), picture())
    check_owners(wake(make(small(), ["color"])), picture())


@pytest.mark.parametrize(
    ("make", "often"),
    [
        (lambda e: TaskAdapters(e, TASKS), [1, 1, 1]),
        (lambda e: TaskAdapters(e, TASKS, [3], feed_back=True), [1, 1, 1]),
        (lambda e: TaskAdapters(e, TASKS, [2, 3], feed_back=True), [1, 1, 2]),
        (lambda e: TaskAdapters(e, TASKS, feed_back=True), [1, 2, 2]),
        (lambda e: LoRA(e, TASKS, stages=[3]), [1, 1, 2]),
        (lambda e: LoRA(e, TASKS), [2, 2, 2]),
    ],
)
def test_the_trunk_runs_as_often_as_it_must(make: Callable[[Encoder], Architecture], often: list[int]) -> None:
    architecture = wake(make(small()))
    with counted(architecture) as calls:
        both = architecture(picture())
    assert calls == often
    with counted(architecture) as calls:
        alone = architecture(picture(), ["shade"])
    assert calls == [1, 1, 1] and list(alone) == ["shade"]
    for one, other in zip(alone["shade"], both["shade"], strict=True):
        assert torch.allclose(one.tensor, other.tensor, rtol=1e-12)


def test_beside_the_trunk_a_correction_goes_on_to_the_next_level() -> None:
    class Plus(Adapter):
        """Adds its weight."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((channels,), float(channels), dtype=torch.float64))

        def forward(self, cells: Tensor) -> Tensor:
            return cells * 0 + self.weight[:, None, None]

    # Maps of 6 x 7, 3 x 4 and 2 x 2: the last cells are means of less than four.
    encoder, source = strided(), picture(2, (11, 13))
    trunk = encoder(source)
    pyramid = TaskAdapters(encoder, TASKS, [1, 3], adapter=Plus)(source)["color"]
    first, second, third = (after.tensor - before.tensor for before, after in zip(trunk, pyramid, strict=True))
    assert torch.allclose(first, torch.full_like(first, 4.0))
    assert torch.allclose(second[:, :4], torch.full_like(second[:, :4], 4.0)) and not second[:, 4:].abs().max() > 1e-12
    assert torch.allclose(third[:, :4], torch.full_like(third[:, :4], 12.0))
    assert torch.allclose(third[:, 4:], torch.full_like(third[:, 4:], 8.0))


def test_low_rank_updates_are_those_of_the_paper() -> None:
    encoder = small()
    architecture = wake(LoRA(encoder, TASKS, rank=2, alpha=3.0, stages=[2]))
    weight, update = encoder.stages[1].body.conv.weight, architecture.updates["shade"]["1"]["body_conv_weight"]
    assert (update.a.shape, update.b.shape) == ((2, 4 * 9), (6, 2))
    changed = weight + (update.b @ update.a * 1.5).view_as(weight)
    features = encoder.stages[0](encoder.start(picture())).tensor
    expected = encoder.stages[1].body[1:](nn.functional.conv2d(features, changed, encoder.stages[1].body.conv.bias, padding=1))
    assert torch.allclose(architecture(picture())["shade"][1].tensor, expected)
    size = architecture.tables()["updates"]
    assert (size.rows, size.columns) == (TASKS, ["stage 2"])
    assert torch.allclose(size.values[1, 0], (changed - weight).norm() / weight.norm())


@kinds
def test_what_is_at_a_frozen_trunk_learns_and_the_trunk_does_not(make: Make) -> None:
    architecture = wake(make(small(norm=True), TASKS))
    before = {key: value.clone() for key, value in architecture.encoder.state_dict().items()}
    freezer = frozen(architecture)
    architecture.train()
    said: list[str] = []
    losses = step_of(architecture, PCGrad(), said, freezer.parameters)
    # Gradient methods have nothing to weigh, and say so.
    assert said == [
        "Nothing that tasks share learns now: PCGrad has no gradients to weigh, and every task counts with its loss times "
        "1, as under Equal"
    ]
    for task, loss in losses.items():
        own = [value for value, users in architecture.owners().items() if users == {task}]
        for parameter, gradient in zip(own, torch.autograd.grad(loss, own, retain_graph=True), strict=True):
            assert gradient.any() and parameter.grad is not None and torch.allclose(parameter.grad, gradient, atol=1e-14)
    assert all(parameter.grad is None for parameter in freezer.parameters)
    after = architecture.encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    for statistics in architecture.statistics.values():
        assert all(int(value) == 0 for name, value in statistics.named_buffers() if name.endswith("tracked"))
    if isinstance(architecture, TaskAdapters) and not architecture.feed_back:
        assert not any(level.tensor.requires_grad for level in architecture.encoder(picture())), "no graph of the frozen trunk"


@kinds
def test_gradients_are_balanced_over_the_trunk_alone(make: Make) -> None:
    architecture = wake(make(small(), TASKS))
    said: list[str] = []
    step_of(architecture, PCGrad(), said, [])
    assert said == []
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in architecture.parameters())
    shared = [parameter for parameter, users in architecture.owners().items() if len(users) > 1]
    assert set(shared) == set(architecture.encoder.parameters())  # type: ignore[union-attr]


@kinds
def test_padding_changes_nothing(make: Make) -> None:
    check_padding(wake(make(strided(), TASKS)))


@kinds
def test_texts(make: Make) -> None:
    architecture = wake(make(TextEncoder(), TASKS))
    pyramid = architecture(text())["shade"]
    assert [level.tensor.shape[2:] for level in pyramid] == [(1, 7)] * 3
    assert not pyramid[-1].tensor[1, ..., 4:].any() and pyramid[-1].tensor[1, ..., :4].any()
    check_owners(architecture, text())


def test_low_rank_updates_leave_out_stages_without_such_weights() -> None:
    assert list(LoRA(TextEncoder(), TASKS).updates["color"]) == ["1", "2"]
    with pytest.raises(ConfigError, match=r"init_args.stages: stage 1 of TextEncoder has no linear layer"):
        LoRA(TextEncoder(), TASKS, stages=[1, 2])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda e: TaskAdapters(e, TASKS, [4]), "init_args.stages is 4, expected 1 to 3"),
        (
            lambda e: TaskAdapters(e, TASKS, []),
            r"init_args.stages is \[\], expected different stages of the encoder, from 1 to 3",
        ),
        (lambda e: TaskAdapters(e, TASKS, adapter=lambda n: BottleneckAdapter(n, 0)), "adapter.init_args.reduction is 0"),
        (lambda e: LoRA(e, TASKS, stages=[0]), "init_args.stages is 0, expected 1 to 3"),
        (lambda e: LoRA(e, TASKS, rank=0), "rank is 0 and alpha None"),
        (lambda e: LoRA(e, TASKS, alpha=-1.0), "rank is 4 and alpha -1.0"),
    ],
)
def test_bad_values(make: Callable[[Encoder], Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make(small())


def test_an_encoder_that_cannot_be_stepped_through() -> None:
    class Whole(SmallCNN):
        def forward(self, image: Features) -> list[Features]:
            return super().forward(image)

    for make in KINDS.values():
        with pytest.raises(ConfigError, match="Whole has a forward pass of its own"):
            make(Whole([4]), TASKS)


@kinds
def test_class_tokens(make: Make) -> None:
    encoder = transformer()
    architecture = make(encoder, TASKS).double()
    for one, other in zip(architecture(picture())["shade"], encoder(picture()), strict=True):
        assert torch.equal(one.tensor, other.tensor) and torch.equal(one.token, other.token)  # type: ignore[arg-type]
    check_owners(wake(architecture), picture())
    check_token(architecture)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Swin, ConvNeXt])
def test_encoder_families(kind: type[Encoder]) -> None:
    torch.manual_seed(0)
    encoder = kind().eval()
    source = Features(torch.rand(1, 3, 64, 64))
    trunk = encoder(source)
    for make in KINDS.values():
        architecture = make(encoder, TASKS).eval()
        frozen(architecture)
        for one, other in zip(architecture(source)["shade"], trunk, strict=True):
            assert torch.equal(one.tensor, other.tensor)
        own = [value for value, users in architecture.owners().items() if users == {"color"}]
        with torch.no_grad():
            for parameter in own:
                parameter.add_(0.1 * torch.randn_like(parameter))
        loss = architecture(source, ["color"])["color"][-1].tensor.square().sum()
        assert all(gradient.any() for gradient in torch.autograd.grad(loss, own))


@pytest.mark.slow
@kinds
def test_export(make: Make) -> None:
    from mtl_lightning.model import MultiTaskModel
    from mtl_lightning.tasks import Classification

    tasks = {name: Classification(classes=["a", "b"]) for name in TASKS}
    model = MultiTaskModel(tasks, wake(make(SmallCNN([4, 6]), TASKS))).float().eval()
    images = torch.rand(5, 3, 16, 16)
    program = torch.export.export(
        model, ({"image": images[:2]},), dynamic_shapes=({"image": {0: torch.export.Dim("batch")}},), strict=False
    )
    for name, value in program.module()({"image": images}).items():
        assert torch.allclose(value, model({"image": images})[name], atol=1e-5)
