import copy
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting import AutoLambda, TaskInfo
from mtl_lightning.weighting.adam import VectorAdam

TASKS = [TaskInfo("a"), TaskInfo("b"), TaskInfo("c")]
ALL = torch.arange(3)
Loss = Callable[[dict[str, Tensor], int], Tensor]


class Tried:
    """A probe of a small network: [T] losses of a batch as a function of the parameters."""

    def __init__(self, model: nn.Module, loss: Loss, lr: float = 0.1, present: Sequence[Tensor] = (ALL, ALL)) -> None:
        self.model, self.loss, self.lr, self.present = model, loss, lr, present
        self.calls: list[str] = []

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def values(self, batch: int) -> Tensor:
        return self.loss(dict(self.model.named_parameters()), batch)

    def losses(self, batch: int) -> tuple[Tensor, Tensor]:
        self.calls.append(f"losses {batch}")
        present = self.present[batch]
        return self.values(batch).detach().double()[present], present

    def gradient(self, batch: int, weights: Tensor) -> list[Tensor]:
        self.calls.append(f"gradient {batch}")
        present = self.present[batch]
        objective = (self.values(batch)[present] * weights[present]).sum()
        return list(torch.autograd.grad(objective, self.parameters))

    def jacobian(self, batch: int) -> tuple[Tensor, Tensor]:
        raise AssertionError


def ready(method: AutoLambda) -> AutoLambda:
    method.prepare(TASKS)
    return method.double()


def network(hidden: int) -> tuple[nn.Module, Loss]:
    """Linear (quadratic losses) without a hidden layer; the losses are of three outputs."""
    generator = torch.Generator().manual_seed(5)
    model: nn.Module = nn.Linear(4, 3) if not hidden else nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    model.double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(2, 8, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    common = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], batch: int) -> Tensor:
        return ((functional_call(model, parameters, (inputs[batch],)) - targets[batch]) ** 2).mean(0) * common

    return model, loss


def hypergradient(probe: Tried, weights: Tensor, primary: Tensor) -> Tensor:
    """The derivative of the primary tasks' losses of batch 1 through the virtual step."""
    weights = weights.detach().clone().requires_grad_()
    parameters = dict(probe.model.named_parameters())
    objective = (probe.loss(parameters, 0)[probe.present[0]] * weights[probe.present[0]]).sum()
    gradients = torch.autograd.grad(objective, list(parameters.values()), create_graph=True)
    moved = {name: value - probe.lr * g for (name, value), g in zip(parameters.items(), gradients, strict=True)}
    outer = (probe.loss(moved, 1)[probe.present[1]] * primary[probe.present[1]]).sum()
    found: Tensor = torch.autograd.grad(outer, weights)[0]
    return found


@pytest.mark.parametrize("primary", [None, ["b"], ["a", "c"]])
@pytest.mark.parametrize(("hidden", "rel"), [(0, 1e-8), (6, 1e-3)])
def test_lambda_moves_by_the_hypergradient(primary: list[str] | None, hidden: int, rel: float) -> None:
    model, loss = network(hidden)
    probe, method = Tried(model, loss), ready(AutoLambda(lr=0.01, primary=primary))
    helped = torch.tensor([1.0 if primary is None or task.name in primary else 0.0 for task in TASKS], dtype=torch.float64)
    # Adam's first step has the sign alone: hold the moments of the gradients against it instead.
    seen: list[Tensor] = []
    plain = method.optimizer.step

    def step(value: Tensor, gradient: Tensor, positions: Tensor) -> None:
        seen.append(gradient.clone())
        plain(value, gradient, positions)

    method.optimizer.step = step  # type: ignore[method-assign]
    reference, adam = torch.full((3,), 0.1, dtype=torch.float64), VectorAdam(3, 0.01).double()
    for _ in range(5):
        exact = hypergradient(probe, method.weights, helped)
        method.explore(probe)
        assert seen[-1].tolist() == pytest.approx(exact.tolist(), rel=rel, abs=rel * float(exact.abs().max()))
        adam.step(reference, exact, ALL)
        reference.clamp_(min=0)
        assert method.weights.tolist() == pytest.approx(reference.tolist(), abs=1e-4)
        # The network learns between the steps.
        for parameter, gradient in zip(probe.parameters, probe.gradient(0, method.weights), strict=True):
            parameter.data -= probe.lr * gradient
    assert not torch.equal(reference, torch.full((3,), 0.1, dtype=torch.float64))


def quadratics(aim: list[float]) -> tuple[nn.Module, Loss, Tensor, Tensor]:
    """L_t = |theta - a_t|^2 / 2 on batch 0, |theta - aim|^2 / 2 on batch 1; theta - a_t [3, 2], and theta - aim."""
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    ends = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    end = torch.tensor(aim, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], batch: int) -> Tensor:
        return ((parameters["weight"] - (end if batch else ends)) ** 2).sum(1).expand(3) / 2

    return model, loss, model.weight.detach().clone() - ends, model.weight.detach()[0] - end


def test_quadratics_by_hand() -> None:
    model, loss, away, far = quadratics([2.0, 2.0])
    method = ready(AutoLambda(lr=0.01, init=0.2))
    # d/d lambda_t = -lr (theta - a_t) . 3 (theta' - aim).
    slope = -0.1 * away @ (3 * (far - 0.1 * method.weights[0] * away.sum(0)))
    seen: list[Tensor] = []
    method.optimizer.step = lambda value, gradient, positions: seen.append(gradient)  # type: ignore[assignment,method-assign]
    method.explore(Tried(model, loss))
    assert seen[0].tolist() == pytest.approx(slope.tolist(), rel=1e-9)


def test_lambda_does_not_become_negative() -> None:
    # The first task leads away from the aim.
    model, loss, *_ = quadratics([-2.0, -6.0])
    method = ready(AutoLambda(lr=1.0))
    method.explore(Tried(model, loss))
    assert float(method.weights[0]) == 0 and float(method.weights.max()) > 1


def test_the_order_of_trials_and_the_cost() -> None:
    probe, method = Tried(*network(0)), ready(AutoLambda())
    method.explore(probe)
    assert probe.calls == ["gradient 0", "gradient 1", "losses 0", "losses 0"]
    assert method.extra_batches == 1


def test_parameters_are_put_back_bit_by_bit() -> None:
    model, loss = network(6)
    model.float()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    method = AutoLambda()
    method.prepare(TASKS)
    probe = Tried(model, lambda parameters, batch: loss({k: v.double() for k, v in parameters.items()}, batch))
    method.explore(probe)
    assert all(torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))

    def broken(batch: int) -> tuple[Tensor, Tensor]:
        raise RuntimeError("out of memory")

    probe.losses = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        method.explore(probe)
    assert all(torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))


def test_absent_tasks_and_empty_batches_leave_lambda_alone() -> None:
    model, loss = network(0)
    two = torch.tensor([0, 2])
    method = ready(AutoLambda(lr=0.01))
    method.explore(Tried(model, loss, present=(two, ALL)))
    assert float(method.weights[1]) == pytest.approx(0.1)
    assert method.optimizer.steps.tolist() == [1, 0, 1]
    # No label of a primary task in the other batch.
    method = ready(AutoLambda(lr=0.01, primary=["b"]))
    state = copy.deepcopy(method.state_dict())
    method.explore(Tried(model, loss, present=(ALL, two)))
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())


def test_losses_that_are_not_finite_leave_lambda_alone() -> None:
    model, loss = network(0)
    method = ready(AutoLambda(lr=0.01))
    spoiled = torch.tensor([0.0, math.nan, 0.0])
    probe = Tried(model, loss)
    plain = probe.losses

    def losses(batch: int) -> tuple[Tensor, Tensor]:
        values, present = plain(batch)
        return values + spoiled, present

    probe.losses = losses  # type: ignore[method-assign]
    method.explore(probe)
    assert method.optimizer.steps.tolist() == [1, 0, 1] and method.weights.isfinite().all()
    method = ready(AutoLambda(lr=0.01))
    method.explore(Tried(model, lambda parameters, batch: loss(parameters, batch) * (math.nan if batch else 1.0)))
    assert method.optimizer.steps.tolist() == [0, 0, 0]


def test_weights_and_a_resumed_run() -> None:
    probe, method, resumed = Tried(*network(0)), ready(AutoLambda(lr=0.01)), ready(AutoLambda(lr=0.01))
    assert method(torch.ones(3), ALL).tolist() == pytest.approx([0.1] * 3)
    method.explore(probe)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    method.explore(probe)
    resumed.explore(probe)
    assert torch.equal(method(torch.ones(2), ALL[1:]), resumed(torch.ones(2), ALL[1:]))
    assert not torch.equal(method.weights, torch.full((3,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr is 0"),
        ({"init": -0.1}, "init is -0.1"),
        ({"primary": []}, r"primary is \[\]"),
        ({"primary": ["x"]}, "primary names 'x'"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.weighting\.init_args\.{message}.*expected"):
        ready(AutoLambda(**options))  # type: ignore[arg-type]
