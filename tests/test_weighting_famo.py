import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting import FAMO, TaskInfo
from mtl_lightning.weighting.adam import VectorAdam

LOSSES = torch.tensor([1.5, 4.0, 0.25], dtype=torch.float64)
ALL = torch.arange(3)


def ready(method: FAMO) -> FAMO:
    method.prepare([TaskInfo("a"), TaskInfo("b", weight=2.0), TaskInfo("c")])
    return method.double()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs_with_a_parameter_a_task(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    twins = [nn.Parameter(entry.clone()) for entry in value]
    adam = VectorAdam(4, 0.05, weight_decay=decay).double()
    other = torch.optim.Adam(twins, lr=0.05, weight_decay=decay)
    for _ in range(40):
        positions = (torch.rand(4, generator=generator) < 0.6).nonzero().flatten()
        gradient = torch.randn(len(positions), generator=generator, dtype=torch.float64)
        adam.step(value, gradient, positions)
        other.zero_grad()
        for position, entry in zip(positions.tolist(), gradient, strict=True):
            twins[position].grad = entry.clone()
        other.step()
    assert value.tolist() == pytest.approx([float(twin.detach()) for twin in twins], rel=1e-12)
    assert adam.steps.unique().numel() > 1


def test_adam_leaves_the_other_entries_alone() -> None:
    adam, value = VectorAdam(3, 0.1, weight_decay=1.0), torch.tensor([1.0, 2.0, 3.0])
    adam.step(value, torch.tensor([1.0, -1.0]), torch.tensor([2, 0]))
    assert float(value[1]) == 2 and adam.steps.tolist() == [1, 0, 1] and float(adam.second[1]) == 0
    assert not torch.equal(value[[0, 2]], torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize("present", [ALL, torch.tensor([0, 2])])
def test_weights_are_the_gradient_of_the_objective(present: Tensor) -> None:
    method = ready(FAMO())
    method.logits.copy_(torch.tensor([0.3, -1.0, 0.7]))
    losses = LOSSES[present].clone().requires_grad_()
    share = torch.softmax(method.logits[present], 0)
    constant = (share / losses.detach()).sum()
    ((share * losses.log()).sum() / constant).backward()
    assert losses.grad is not None
    weights = method(LOSSES[present], present)
    assert weights.tolist() == pytest.approx(losses.grad.tolist(), rel=1e-12)
    assert float(weights.sum()) == pytest.approx(1)


def network() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return model, inputs, torch.randn(16, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("every", [1, 3])
def test_logits_follow_the_change_of_the_same_batchs_losses(every: int) -> None:
    model, inputs, targets = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    method = ready(FAMO(gamma=0.01, every=every))
    logits = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    reference = torch.optim.Adam([logits], lr=0.025, weight_decay=0.01)
    for step in range(12):
        losses = ((model(inputs) - targets) ** 2).mean(0)
        optimizer.zero_grad()
        (method(losses.detach(), ALL) * losses).sum().backward()
        optimizer.step()
        share = method.revisit()
        assert share == (1.0 if step % every == 0 else 0.0)
        if not share:
            continue
        after = ((model(inputs) - targets) ** 2).mean(0).detach()
        method.revisited(losses.detach(), after, ALL)
        reference.zero_grad()
        (torch.softmax(logits, 0) * (losses.detach().log() - after.log())).sum().backward()
        reference.step()
        assert method.logits.tolist() == pytest.approx(logits.tolist(), rel=1e-9)


def test_the_task_that_fell_least_gains_weight() -> None:
    method = ready(FAMO())
    for _ in range(20):
        method.revisited(LOSSES, LOSSES * torch.tensor([0.5, 0.9, 0.5]), ALL)
    assert int(method.logits.argmax()) == 1


def test_absent_and_unfinite_tasks_rest() -> None:
    method = ready(FAMO())
    method.revisited(LOSSES, LOSSES * torch.tensor([0.5, 0.9, 0.7]), ALL)
    before = copy.deepcopy(method.state_dict())
    present = torch.tensor([0, 1])
    method.revisited(LOSSES[present], torch.tensor([0.3, 3.0], dtype=torch.float64), present)
    method.revisited(LOSSES, torch.tensor([0.3, 3.0, math.nan], dtype=torch.float64), ALL)
    method.revisited(torch.tensor([0.3, 3.0, math.inf], dtype=torch.float64), LOSSES, ALL)
    after = method.state_dict()
    assert all(torch.equal(after[name][2], value[2]) for name, value in before.items() if value.dim())
    assert not torch.equal(after["logits"][:2], before["logits"][:2])
    method.revisited(LOSSES[:0], LOSSES[:0], ALL[:0])
    assert torch.equal(method.logits, after["logits"])


def test_losses_times_a_constant_change_no_direction() -> None:
    first, second = ready(FAMO()), ready(FAMO())
    for _ in range(3):
        first.revisited(LOSSES, LOSSES * torch.tensor([0.5, 0.9, 0.7]), ALL)
        second.revisited(LOSSES * 1024, LOSSES * torch.tensor([0.5, 0.9, 0.7]) * 1024, ALL)
    assert first.logits.tolist() == pytest.approx(second.logits.tolist())
    assert first(LOSSES, ALL).tolist() == pytest.approx(second(LOSSES * 1024, ALL).tolist())


def test_a_resumed_run_goes_on_exactly() -> None:
    method, resumed = ready(FAMO(every=2)), ready(FAMO(every=2))

    def step(famo: FAMO) -> Tensor:
        weights: Tensor = famo(LOSSES, ALL)
        if famo.revisit():
            famo.revisited(LOSSES, LOSSES * weights, ALL)
        return weights

    for _ in range(3):
        step(method)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    for _ in range(4):
        assert torch.equal(step(method), step(resumed))


def test_the_lowest_losses_are_subtracted() -> None:
    method = FAMO(min_losses={"b": -3.0, "c": 0.2})
    method.prepare([TaskInfo("a"), TaskInfo("b", weight=2.0), TaskInfo("c")])
    method.double()
    losses = torch.tensor([1.0, -5.0, 0.7], dtype=torch.float64)
    # 'b' counts double: its floor is -6.
    inverse = 1 / torch.tensor([1.0, 1.0, 0.5])
    assert method(losses, ALL).tolist() == pytest.approx((inverse / inverse.sum()).tolist())
    with pytest.raises(TrainingError, match=r"min_losses of task 'c'.* is 0\.2, and its loss is 0\.1"):
        method(torch.tensor([1.0, 0.1]), torch.tensor([0, 2]))


@pytest.mark.parametrize("bad", [0.0, -0.5])
def test_a_loss_without_logarithm_names_task_and_loss(bad: float) -> None:
    with pytest.raises(TrainingError, match=f"'b' is {bad:g}"):
        ready(FAMO())(torch.tensor([1.0, bad]), torch.tensor([0, 1]))
    with pytest.raises(TrainingError, match=f"'b' is {bad:g}"):
        ready(FAMO()).revisited(torch.tensor([1.0, 1.0]), torch.tensor([1.0, bad]), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is 0"),
        ({"gamma": -1.0}, "gamma is -1"),
        ({"every": 0}, "every is 0"),
        ({"fraction": 0.0}, "fraction is 0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"min_losses": {"x": 1.0}}, "min_losses names 'x'"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.weighting\.init_args\.{message}.*expected"):
        ready(FAMO(**options))  # type: ignore[arg-type]
