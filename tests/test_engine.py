"""The gradient engine against gradients by hand."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_lightning.architectures import HardSharing
from mtl_lightning.bad_numbers import Fault
from mtl_lightning.batch import Batch, Collate
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features
from mtl_lightning.gradients import EngineOptions
from mtl_lightning.gradients.held import write
from mtl_lightning.gradients.rows import BLOCK, gramian_of
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.objective import Losses
from mtl_lightning.probe import first_rows
from mtl_lightning.tasks import Classification, Regression, SemanticSegmentation
from mtl_lightning.tasks.base import Task
from mtl_lightning.training import Surroundings, Training
from mtl_lightning.weighting import (
    IMTLG,
    UW,
    AlignedMTL,
    Combined,
    ConFIG,
    Equal,
    GradientWeighting,
    LossWeighting,
    NashMTL,
    TaskInfo,
    Weighting,
)

NAMES = ["color", "level", "mask"]
LABELS = {"color": [torch.tensor(1)], "level": [torch.rand(2), torch.rand(2)], "mask": [torch.ones(4, 4).long()]}
EVERY = {"color": [0, 1, 2], "level": [1, 3], "mask": [0, 3]}


class Given(GradientWeighting):
    """Weights that the test gives, and what it saw."""

    def __init__(self, weights: Sequence[float] = (0.5, 2.0, 3.0), heads: Any = "unweighted") -> None:
        super().__init__()
        self.given, self.heads = torch.tensor(weights, dtype=torch.float64), heads
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        assert losses is not None and present is not None
        assert gramian.dtype == losses.dtype == torch.float64
        self.seen.append((gramian, losses, present))
        return self.given[present]


class Doubled(Given):
    """Changes the gradients themselves."""

    needs_rows = True

    def allocate(self, size: int, dtype: torch.dtype) -> None:
        self.register_buffer("kept", torch.zeros(3, size, dtype=dtype))

    def rows(self, jacobian: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        self.kept[present] = jacobian
        return jacobian * 2


def network(only: Sequence[str] = NAMES, norm: bool = False) -> tuple[MultiTaskModel, dict[str, Task]]:
    torch.manual_seed(0)
    every: dict[str, Task] = {
        "color": Classification(classes=["a", "b", "c"]),
        "level": Regression(names=["one", "two"]),
        "mask": SemanticSegmentation(classes=["no", "yes"]),
    }
    tasks = {name: every[name] for name in only}
    for name, task in tasks.items():
        task.name = name
        task.learn(LABELS[name])
    model = MultiTaskModel(tasks, HardSharing(SmallCNN([6, 8], norm=norm), list(tasks))).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, tasks


def batch_of(tasks: dict[str, Task], present: dict[str, list[int]] = EVERY, seed: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets: dict[str, Callable[[], Tensor]] = {
        "color": lambda: torch.randint(0, 3, (), generator=generator),
        "level": lambda: torch.rand(2, generator=generator),
        "mask": lambda: torch.randint(0, 2, (8, 8), generator=generator),
    }
    samples = []
    for row in range(4):
        sample: dict[str, Any] = {"id": str(row), "image": torch.rand(3, 8, 8, generator=generator)}
        made = {task: target() for task, target in targets.items()}
        samples.append(sample | {task: made[task] for task, rows in present.items() if row in rows and task in tasks})
    batch = Collate({name: task.target for name, task in tasks.items()})(samples)
    batch.inputs["image"] = batch.inputs["image"].double()
    return batch


def training(
    model: MultiTaskModel, tasks: dict[str, Task], weighting: Weighting, said: list[str] | None = None, **options: Any
) -> Training:
    said = [] if said is None else said
    around = Surroundings(
        lambda t: t,
        1,
        0,
        said.append,
        list,
        nullcontext,
        lambda: 0.1,
        lambda: 1.0,
        lambda number: batch_of(tasks, seed=5 + number),
    )
    weighting.prepare([TaskInfo(name) for name in tasks])
    return Training(model, tasks, weighting, [], EngineOptions(**options), around)


def take(
    step: Training, batch: Batch, scale: float = 1.0, scaled: bool = False, said: list[Fault] | None = None
) -> dict[int, float]:
    step.prepare(batch)
    weights = step.backward(step.objective(batch) * scale, scaled).weights
    found = step.settle(scaled)
    if said is not None:
        said += found
    return weights


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    found = {name: None if parameter.grad is None else parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def break_gradient(head: nn.Module) -> None:
    """The prediction stays finite, but the slope of the square root at 0 is not."""
    plain = head.forward
    head.forward = lambda *args: (out := plain(*args)) + (out * 0).sqrt()  # type: ignore[method-assign]


def by_hand(model: MultiTaskModel, tasks: dict[str, Task], batch: Batch) -> dict[str, dict[str, Tensor]]:
    """Each task's gradient by plain backward passes."""
    found = {}
    for name in tasks:
        step = training(model, tasks, Equal())
        losses: Losses = step.losses(model(batch.inputs, batch.padding), batch)
        losses.scalars[name].backward()
        found[name] = {key: value for key, value in gradients(model).items() if value is not None}
    return found


def expected(
    model: MultiTaskModel, tasks: dict[str, Task], batch: Batch, weights: dict[str, float], heads: str
) -> dict[str, Tensor]:
    hand, total = by_hand(model, tasks, batch), {}
    for name, weight in weights.items():
        for key, value in hand[name].items():
            factor = weight if key.startswith("architecture") or heads == "weighted" else 1.0
            if not key.startswith("heads") or key.split(".")[1] == name:
                total[key] = total.get(key, torch.zeros_like(value)) + factor * value
    return total


def same(found: dict[str, Tensor | None], wanted: dict[str, Tensor]) -> None:
    assert {key for key, value in found.items() if value is not None} == set(wanted)
    for key, value in wanted.items():
        assert torch.allclose(found[key], value, rtol=1e-9, atol=1e-12), key  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["parameters", "features"])
@pytest.mark.parametrize("heads", ["weighted", "unweighted"])
@pytest.mark.parametrize("every", [1, 2])
def test_the_direction_is_the_weighted_sum(where: str, heads: str, every: int) -> None:
    model, tasks = network()
    method = Given(heads=heads)
    step = training(model, tasks, method, gradients=where, update_every=every)
    wanted = expected(model, tasks, batch_of(tasks), dict(zip(NAMES, [0.5, 2.0, 3.0], strict=True)), heads)
    for _ in range(2 * every):
        assert take(step, batch_of(tasks)) == {0: 0.5, 1: 2.0, 2: 3.0}
        same(gradients(model), wanted)
    assert len(method.seen) == 2


def test_a_weight_of_nothing_between_two_looks() -> None:
    model, tasks = network()
    step = training(model, tasks, Given((1.0, 0.0, 1e-9)), update_every=2)
    wanted = expected(model, tasks, batch_of(tasks), {"color": 1.0, "level": 0.0, "mask": 1e-9}, "unweighted")
    for _ in range(2):
        take(step, batch_of(tasks))
        same(gradients(model), wanted)


def test_the_gramian_over_parameters_and_at_features() -> None:
    model, tasks = network()
    batch, hand = batch_of(tasks), by_hand(*network(), batch_of(tasks))
    rows = torch.stack([
        torch.cat([value.flatten() for key, value in hand[name].items() if key.startswith("architecture")]) for name in NAMES
    ])  # fmt: skip
    method = Given()
    take(training(model, tasks, method), batch)
    gramian, losses, present = method.seen[0]
    assert torch.allclose(gramian, rows @ rows.T, rtol=1e-9)
    assert present.tolist() == [0, 1, 2]
    found = training(model, tasks, Equal()).losses(model(batch.inputs, None), batch)
    assert torch.allclose(losses, found.values.double())

    pyramid = model.architecture(Features(batch.inputs["image"]))
    leaves = [level.tensor for level in pyramid["color"]]
    losses_at = training(model, tasks, Equal()).losses(model.predict(pyramid, batch.inputs), batch)
    at = []
    for name in NAMES:
        parts = torch.autograd.grad(losses_at.scalars[name], leaves, retain_graph=True, allow_unused=True)
        at.append(
            torch.cat(
                [
                    torch.zeros_like(leaf).flatten() if part is None else part.flatten()
                    for part, leaf in zip(parts, leaves, strict=True)
                ]
            )
        )
    # The finer map's gradient here includes what comes through the coarser one: the engine's own does not.
    model.zero_grad()
    method = Given()
    take(training(model, tasks, method, gradients="features"), batch)
    own = method.seen[0][0]
    assert own.shape == (3, 3) and bool((torch.linalg.eigvalsh(own) > -1e-12).all())
    read = torch.stack([vector[-leaves[-1].numel() :] for vector in at])
    assert torch.allclose(own[:2, :2], (read @ read.T)[:2, :2], rtol=1e-9)


def test_as_many_trunk_backwards_as_tasks() -> None:
    for where, passes in {"parameters": 3, "features": 1}.items():
        model, tasks = network()
        count = [0]
        last = model.architecture.encoder.stages[-1]
        last.body.register_full_backward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        take(training(model, tasks, Given(), gradients=where), batch_of(tasks))
        assert count == [passes]


@pytest.mark.parametrize("where", ["parameters", "features"])
def test_a_scaled_loss_scales_the_step_and_not_what_methods_see(where: str) -> None:
    model, tasks = network()
    one, many = Given(), Given()
    take(training(model, tasks, one, gradients=where), batch_of(tasks))
    plain = gradients(model)
    take(training(model, tasks, many, gradients=where), batch_of(tasks), scale=1024.0)
    for key, value in gradients(model).items():
        assert torch.allclose(value, 1024 * plain[key], rtol=1e-9), key  # type: ignore[arg-type, operator]
    assert torch.allclose(one.seen[0][0], many.seen[0][0], rtol=1e-9)


def test_micro_batches_add_up() -> None:
    model, tasks = network()
    first, second = batch_of(tasks), batch_of(tasks, seed=4)
    step = training(model, tasks, Given())
    take(step, first)
    one = gradients(model)
    take(step, second)
    two = gradients(model)
    take(step, first)
    take(step, second)
    same(gradients(model), {key: one[key] + two[key] for key in one})  # type: ignore[operator, misc]


@pytest.mark.parametrize("where", ["parameters", "features"])
def test_an_absent_task_rests(where: str) -> None:
    model, tasks = network()
    method = Given()
    step, batch = training(model, tasks, method, gradients=where), batch_of(tasks, {"color": [0], "mask": [2]})
    assert take(step, batch) == {0: 0.5, 2: 3.0}
    found = gradients(model)
    assert all(value is None for key, value in found.items() if key.startswith("heads.level"))
    assert method.seen[0][2].tolist() == [0, 2]
    same(found, expected(model, tasks, batch, {"color": 0.5, "mask": 3.0}, "unweighted"))
    assert take(step, batch_of(tasks, {})) == {}
    assert all(value is None for value in gradients(model).values())


@pytest.mark.parametrize("where", ["parameters", "features"])
def test_one_task_that_is_no_number_leaves_the_others_alone(where: str) -> None:
    model, tasks = network()
    said: list[Fault] = []
    step, batch = training(model, tasks, Given(), gradients=where), batch_of(tasks)
    wanted = expected(model, tasks, batch, {"color": 0.5, "mask": 3.0}, "unweighted")
    batch.targets["level"][1] = torch.inf
    assert take(step, batch, said=said) == {0: 0.5, 2: 3.0}
    same(gradients(model), wanted)
    assert [fault.key for fault in said] == ["loss/level"] and "left out" in str(said[0])
    batch.inputs["image"][0] = torch.nan
    assert take(step, batch, said=said) == {}
    assert all(value is None for value in gradients(model).values())
    assert [fault.key for fault in said[1:]] == ["loss/color", "loss/level", "loss/mask"] and said[1].ids == ("0",)


@pytest.mark.parametrize("where", ["parameters", "features"])
def test_a_gradient_that_is_no_number(where: str) -> None:
    model, tasks = network()
    said: list[Fault] = []
    step, batch = training(model, tasks, Given(), gradients=where), batch_of(tasks)
    wanted = expected(model, tasks, batch, {"color": 0.5, "mask": 3.0}, "unweighted")
    break_gradient(model.heads["level"])
    assert take(step, batch, said=said) == {0: 0.5, 2: 3.0}
    same(gradients(model), wanted)
    assert [fault.key for fault in said] == ["gradient/level"]
    # A loss scaler must see it, and skips the step itself.
    assert take(step, batch, scaled=True, said=said) == {} and len(said) == 1
    assert any(value is not None and bool(value.isnan().any()) for value in gradients(model).values())
    assert step.engine is not None and int(step.engine.balance.skipped) == 1


def test_rows_see_gradients_without_the_loss_scale() -> None:
    model, tasks = network()
    method = Doubled()
    take(training(model, tasks, method), batch_of(tasks), scale=8.0)
    hand = by_hand(*network(), batch_of(tasks))
    row = torch.cat([value.flatten() for key, value in hand["level"].items() if key.startswith("architecture")])
    assert torch.allclose(method.kept[1], row, rtol=1e-9)
    model.zero_grad()
    doubled = expected(model, tasks, batch_of(tasks), dict(zip(NAMES, [1.0, 4.0, 6.0], strict=True)), "unweighted")
    model.zero_grad()
    take(training(model, tasks, Doubled()), batch_of(tasks))
    same(gradients(model), doubled)


def test_rows_keep_their_places_while_stages_are_frozen() -> None:
    model, tasks = network()
    method = Doubled()
    step, frozen = training(model, tasks, method), list(model.architecture.encoder.stages[0].parameters())
    step.around = step.around._replace(frozen=lambda: frozen)
    take(step, batch_of(tasks))
    size = sum(parameter.numel() for parameter in frozen)
    assert bool((method.kept[:, :size] == 0).all()) and bool((method.kept[:, size:] != 0).any())
    found = gradients(model)
    assert all((value is None) == name.startswith("architecture.encoder.stages.0") for name, value in found.items())


def test_over_the_last_layer_the_whole_trunk_learns() -> None:
    model, tasks = network()
    method = Given()
    method.over = "last"
    take(training(model, tasks, method), batch_of(tasks))
    same(gradients(model), expected(model, tasks, batch_of(tasks), dict(zip(NAMES, [0.5, 2.0, 3.0], strict=True)), "unweighted"))
    hand = by_hand(*network(), batch_of(tasks))
    layer = [key for key in hand["color"] if key.startswith("architecture") and hand["color"][key].ndim == 4][-1]
    names = [layer] + ([layer.replace("weight", "bias")] if layer.replace("weight", "bias") in hand["color"] else [])
    rows = torch.stack([torch.cat([hand[name][key].flatten() for key in names]) for name in NAMES])
    assert torch.allclose(method.seen[0][0], rows @ rows.T, rtol=1e-9)


def test_one_task_is_plain_training() -> None:
    model, tasks = network(["color"])
    take(training(model, tasks, Given((7.0,))), batch_of(tasks))
    found = gradients(model)
    take(training(model, tasks, Equal()), batch_of(tasks))
    same(found, {key: value for key, value in gradients(model).items() if value is not None})


def test_recomputed_activations_leave_batch_statistics_as_one_pass_does() -> None:
    from torch.utils.checkpoint import checkpoint

    states = []
    for recompute in (False, True):
        model, tasks = network(norm=True)
        stage = model.architecture.encoder.stages[0]
        if recompute:
            step_of = stage.step
            stage.step = lambda features, step_of=step_of: checkpoint(step_of, features, use_reentrant=False)
        take(training(model, tasks, Given()), batch_of(tasks))
        states.append((gradients(model), {name: buffer.clone() for name, buffer in model.named_buffers()}))
    assert states[0][1].keys() == states[1][1].keys()
    for name, value in states[0][1].items():
        assert torch.equal(value, states[1][1][name]), name
    same(states[1][0], {key: value for key, value in states[0][0].items() if value is not None})


def test_gradients_of_a_method_that_needs_none_are_measured_on_request() -> None:
    model, tasks = network()
    step = training(model, tasks, Equal(), watch_every=2)
    assert step.engine is not None
    for _ in range(3):
        take(step, batch_of(tasks))
    found = gradients(model)
    same(
        found,
        {key: 3 * value for key, value in expected(model, tasks, batch_of(tasks), dict.fromkeys(NAMES, 1.0), "weighted").items()},
    )
    assert float(step.engine.balance.meter.steps) == 2
    record = step.engine.balance.meter.epoch_record()
    assert {f"train/gradient/cosine/{a}/{b}" for a, b in (("color", "level"), ("color", "mask"), ("level", "mask"))} <= set(
        record
    )


@pytest.mark.parametrize("size", [5, BLOCK, 64 * BLOCK + 5])
def test_the_gramian_of_long_rows_is_exact(size: int) -> None:
    rows = torch.rand(3, size, generator=torch.Generator().manual_seed(0))
    wide = rows.double()
    assert torch.allclose(gramian_of(rows), wide @ wide.T, rtol=1e-6, atol=0)


def test_two_parameters_never_share_the_memory_of_their_gradient() -> None:
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    one = torch.ones(3)
    write({first: one, second: one})
    first.grad.mul_(2)  # type: ignore[union-attr]
    assert second.grad.tolist() == [1.0] * 3  # type: ignore[union-attr]


def test_opposite_gradients_are_told() -> None:
    method = NashMTL()
    method(torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64))
    assert method.pareto_stationary and method.notes() == {"gradient/pareto_stationary": 1.0}
    method(torch.eye(2, dtype=torch.float64))
    assert not method.pareto_stationary and Combined(UW(), method).notes() == {"gradient/pareto_stationary": 1.0}


class Seeing(Equal):
    """Looks at half of each batch again."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def revisit(self) -> float:
        return 0.5

    def revisited(self, before: Tensor, after: Tensor, present: Tensor) -> None:
        self.pairs.append((before, after))


@pytest.mark.parametrize("norm", [False, True])
def test_a_part_of_the_batch_is_seen_before_and_after_the_step(norm: bool) -> None:
    """Without batch norm and dropout the step's own predictions are those before it: one pass less from the second step on."""
    model, tasks = network(norm=norm)
    if not norm:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    method, batch = Seeing(), batch_of(tasks)
    step, sizes = training(model, tasks, method), []
    model.architecture.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0].tensor)))
    for turn in range(2):
        before = {name: value.clone() for name, value in model.named_buffers()}
        sizes.clear()
        take(step, batch)
        model.zero_grad()
        step.finish()
        assert torch.equal(*method.pairs[turn]), "nothing was learnt between the two looks"
        assert len(sizes) == 3 - turn * (not norm)
        assert sorted(sizes) == [2] * (len(sizes) - 1) + [4]
        if turn == 0 and norm:
            assert any(not torch.equal(value, before[name]) for name, value in model.named_buffers())
    half = first_rows(batch, 2)
    with torch.no_grad():
        found = step.losses(model(half.inputs, None), half)
    chosen = found.values.double()[found.present]
    assert torch.allclose(method.pairs[-1][1], chosen, rtol=1e-12) or norm


def test_what_does_not_go_together() -> None:
    model, tasks = network()
    with pytest.raises(ConfigError, match=r"gradients is features.*Doubled"):
        training(model, tasks, Doubled(), gradients="features")
    with pytest.raises(ConfigError, match=r"update_every is 2.*Doubled"):
        training(model, tasks, Doubled(), update_every=2)
    model.architecture.common = False
    with pytest.raises(ConfigError, match="HardSharing"):
        training(model, tasks, Given(), gradients="features")
    owners = model.architecture.owners()
    model.architecture.owners = lambda: dict.fromkeys(owners, frozenset({"color"}))  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="shares none"):
        training(model, tasks, Given())
    with pytest.raises(ConfigError, match="update_every"):
        EngineOptions(update_every=0)
    assert isinstance(Equal(), LossWeighting)


@pytest.mark.parametrize("where", ["parameters", "features"])
def test_weights_are_not_used_for_other_tasks_than_they_were_found_for(where: str) -> None:
    model, tasks = network()
    method = Given()
    step = training(model, tasks, method, gradients=where, update_every=10)
    for present in (EVERY, {"level": [1, 3]}, {"level": [1, 3]}, EVERY):
        take(step, batch_of(tasks, present))
    assert [seen[2].tolist() for seen in method.seen] == [[0, 1, 2], [1], [0, 1, 2]]


@pytest.mark.parametrize("where", ["parameters", "features"])
def test_a_gradient_that_is_no_number_between_two_looks(where: str) -> None:
    model, tasks = network()
    said: list[Fault] = []
    step, batch = training(model, tasks, Given(), gradients=where, update_every=10), batch_of(tasks)
    take(step, batch)
    gradients(model)
    break_gradient(model.heads["level"])
    assert take(step, batch, said=said) == {}
    assert all(value is None for value in gradients(model).values()) and "not taken" in said[0].lost
    # The next step looks at whose it is.
    assert take(step, batch, said=said) == {0: 0.5, 2: 3.0}
    assert said[-1].key == "gradient/level" and "left out" in said[-1].lost


def test_a_gradient_that_overflows_for_ever_is_no_matter_of_the_scale() -> None:
    model, tasks = network()
    said: list[Fault] = []
    step, batch = training(model, tasks, Given()), batch_of(tasks)
    break_gradient(model.heads["level"])
    taken = []
    for _ in range(35):
        taken.append(take(step, batch, scaled=True, said=said))
        model.zero_grad()
    assert taken[29] == {} and taken[34] == {0: 0.5, 2: 3.0}
    assert {fault.key for fault in said} == {"gradient/level"}


@pytest.mark.parametrize("where", ["parameters", "features"])
def test_penalties_of_activations_and_constants(where: str) -> None:
    model, tasks = network()
    step, batch = training(model, tasks, Given(), gradients=where), batch_of(tasks)
    take(step, batch)
    without = gradients(model)
    seen: list[Tensor] = []
    stage = model.architecture.encoder.stages[0]
    stage.register_forward_hook(lambda module, inputs, output: seen.append(output.tensor))
    model.architecture.penalties = lambda: {"sizes": seen[-1].square().mean(), "constant": torch.tensor(2.0)}  # type: ignore[method-assign]
    take(step, batch)
    found = gradients(model)
    model.architecture(Features(batch.inputs["image"]))
    seen[-1].square().mean().backward()
    for name, value in gradients(model).items():
        if value is not None:
            assert torch.allclose(found[name], without[name] + value, rtol=1e-9), name  # type: ignore[operator, arg-type]


def test_nothing_that_learns_is_shared() -> None:
    model, tasks = network()
    for options in ({"watch_every": 1}, {}):
        step = training(model, tasks, Equal() if options else Given(), **options)
        step.around = step.around._replace(frozen=lambda: list(model.architecture.parameters()))
        take(step, batch_of(tasks))
        same(
            {name: value for name, value in gradients(model).items() if name.startswith("heads")},
            {name: value for name, value in expected(model, tasks, batch_of(tasks), dict.fromkeys(NAMES, 1.0), "weighted").items()
             if name.startswith("heads")},
        )  # fmt: skip


@pytest.mark.parametrize("size", [300, 100_000])
def test_a_gradient_that_is_the_sum_of_two_others(size: int) -> None:
    """In float32 it is so but for rounding, which must not pass for a direction of its own."""
    for seed in range(10):
        rows = torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
        rows[2] = rows[0] + rows[1]
        for method in (AlignedMTL(), IMTLG(), ConFIG()):
            direction = method(gramian_of(rows).double()).float() @ rows
            assert float(direction.norm()) > 0.1 * float(rows[0].norm()), type(method).__name__


def test_the_compiled_encoder_is_told_to_keep_its_buffers() -> None:
    import torch._functorch.config as functorch

    training(*network(), Given())
    assert functorch.donated_buffer is False
