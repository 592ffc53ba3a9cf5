import itertools
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting import DualProj, GradientWeighting, GradVac, PCGrad, TaskInfo, UPGrad
from mtl_lightning.weighting.solvers import dual_cone
from mtl_lightning.weighting.solvers.orders import random_orders
from tests.gramians import families, units

CASES = [pytest.param(jacobian, id=f"{tasks} {name}") for tasks in (2, 3, 11, 40) for name, jacobian in families(tasks)]
ALL = [UPGrad, DualProj, PCGrad, GradVac]


def residual(jacobian: Tensor, preferences: Tensor, weights: Tensor) -> float:
    """Of the optimality conditions x = v - u >= 0, w = G v >= 0, x . w = 0, in unit gradients, by the longest in each u."""
    rows, lengths = units(jacobian)
    sizes = (preferences * lengths).abs().amax(1, keepdim=True)
    surplus = (weights - preferences) * lengths / sizes
    products = (preferences * lengths / sizes + surplus) @ (rows @ rows.T)
    return float(torch.minimum(surplus, products).abs().max())


@pytest.mark.parametrize("jacobian", CASES)
def test_projections_satisfy_the_optimality_conditions(jacobian: Tensor) -> None:
    tasks = len(jacobian)
    for preferences in (torch.eye(tasks).double(), torch.full((1, tasks), 1 / tasks).double()):
        weights = dual_cone.project(jacobian @ jacobian.T, preferences)
        assert residual(jacobian, preferences, weights) <= 1e-8


def test_projections_equal_those_by_all_active_sets() -> None:
    for seed in range(20):
        jacobian = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.7
        jacobian[1] -= jacobian[0] * 1.5
        gramian, unit = jacobian @ jacobian.T, torch.eye(4, dtype=torch.float64)
        for row, found in zip(unit, dual_cone.project(gramian, unit), strict=True):
            best = None
            for chosen in itertools.chain.from_iterable(itertools.combinations(range(4), size) for size in range(5)):
                index = list(chosen)
                surplus = torch.zeros(4, dtype=torch.float64)
                surplus[index] = torch.linalg.solve(gramian[index][:, index], -(gramian @ row)[index])
                value = (row + surplus) @ gramian @ (row + surplus)
                if (surplus >= 0).all() and (best is None or value < best[0]):
                    best = value, row + surplus
            assert best is not None
            assert torch.allclose(found, best[1], rtol=1e-9, atol=1e-9)


def test_the_slow_way_of_projecting_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, jacobian in families(11):
        gramian, unit = jacobian @ jacobian.T, torch.eye(11, dtype=torch.float64)
        monkeypatch.setattr(dual_cone, "CERTIFIED", 1e-9)
        fast = dual_cone.project(gramian, unit)
        monkeypatch.setattr(dual_cone, "CERTIFIED", -1.0)  # Nothing passes.
        slow = dual_cone.project(gramian, unit)
        rows, lengths = units(jacobian)
        difference = ((fast - slow) * lengths / lengths[:, None]) @ rows
        assert residual(jacobian, unit, slow) <= 1e-8, name
        assert difference.norm(dim=1).max() <= 1e-7, name


@pytest.mark.parametrize("tasks", [3, 11, 40])
def test_the_fast_way_is_enough(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = []
    monkeypatch.setattr(dual_cone, "_alone", lambda cosines, scaled: slow.append(scaled) or 0.0)
    for name, jacobian in families(tasks):
        if tasks > 3 or name != "nearly opposite":
            UPGrad()(jacobian @ jacobian.T)
            assert not slow, name


def test_rounding_that_makes_the_gramian_indefinite() -> None:
    jacobian = dict(families(11))["in three dimensions"].float()
    gramian = (jacobian @ jacobian.T).double()
    assert torch.linalg.eigvalsh(gramian)[0] < -1e-8
    weights = UPGrad()(gramian)
    assert (units(jacobian.double())[0] @ (jacobian.double().T @ weights)).min() > -1e-5


@pytest.mark.parametrize("method", [UPGrad, DualProj])
@pytest.mark.parametrize("jacobian", CASES)
def test_the_step_conflicts_with_no_task(jacobian: Tensor, method: type[GradientWeighting]) -> None:
    weights = method()(jacobian @ jacobian.T)
    rows, lengths = units(jacobian)
    assert (rows @ (jacobian.T @ weights) / lengths.max()).min() >= -1e-8
    assert (weights >= 1 / len(jacobian) * (1 - 1e-12)).all()


@pytest.mark.parametrize(("cosine", "first"), [(0.5, 0.5), (0.0, 0.5), (-0.5, 0.75), (-0.9, 0.95), (-1.0, 1.0)])
def test_two_unit_gradients(cosine: float, first: float) -> None:
    # Under conflict g_i becomes g_i - cos g_j.
    gramian = torch.tensor([[1, cosine], [cosine, 1]], dtype=torch.float64)
    assert UPGrad()(gramian).tolist() == pytest.approx([first, first])
    assert PCGrad()(gramian).tolist() == pytest.approx([2 * first, 2 * first])
    assert GradVac()(gramian).tolist() == pytest.approx([2 * first, 2 * first])  # Targets are still 0.
    assert DualProj()(gramian).tolist() == pytest.approx([0.5, 0.5])  # The mean conflicts with none.


def test_dual_projection_of_a_mean_that_conflicts() -> None:
    # (g_1 + g_2) / 2 for g_1 = (3, 0), g_2 = (-1, 1): (1, 1/2) . g_2 < 0; what is left is its part across g_2.
    gramian = torch.tensor([[9.0, -3.0], [-3.0, 2.0]], dtype=torch.float64)
    assert DualProj()(gramian).tolist() == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize("method", [UPGrad, DualProj])
def test_projections_follow_the_tasks_order_and_a_common_scale(method: type[GradientWeighting]) -> None:
    for name, jacobian in families(11):
        if torch.linalg.matrix_rank(units(jacobian)[0]) < 11:
            continue
        gramian, order = jacobian @ jacobian.T, torch.randperm(11, generator=torch.Generator().manual_seed(1))
        weights = method()(gramian)
        assert torch.allclose(method()(gramian[order][:, order]), weights[order], rtol=1e-6, atol=1e-9), name
        assert torch.allclose(method()(gramian * 1024.0**2), weights, rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("method", ALL)
def test_small_gramians(method: Callable[[], GradientWeighting]) -> None:
    for gramian in (torch.tensor([[7.0]]), torch.tensor([[0.0]]), torch.zeros(3, 3), torch.eye(3)):
        weights = method()(gramian.double())
        plain = 1.0 if method in (PCGrad, GradVac) else 1 / len(gramian)
        assert weights.dtype == torch.float64
        assert weights.tolist() == pytest.approx([plain] * len(gramian))


@pytest.mark.parametrize("method", ALL)
def test_a_zero_gradient_changes_nothing(method: Callable[[], GradientWeighting]) -> None:
    gramian = torch.tensor([[1.0, -0.5], [-0.5, 2.0]], dtype=torch.float64)
    wide = torch.zeros(3, 3, dtype=torch.float64)
    wide[1:, 1:] = gramian
    share = 1.0 if method in (PCGrad, GradVac) else 2 / 3  # Of a mean over three.
    assert torch.allclose(method()(wide)[1:], share * method()(gramian), rtol=1e-12)


def literal(jacobian: Tensor, orders: np.ndarray, targets: Tensor, beta: float) -> Tensor:
    """PCGrad (beta 0, targets 0) and GradVac on the gradients themselves."""
    total = torch.zeros_like(jacobian[0])
    for task, others in enumerate(orders.tolist()):
        own = jacobian[task].clone()
        for other in others:
            them = jacobian[other]
            cosine = float(own @ them / (own.norm() * them.norm()))
            aim = float(targets[task, other])
            if cosine < aim:
                across = math.sqrt(1 - aim * aim)
                own += own.norm() * (aim * math.sqrt(1 - cosine**2) - cosine * across) / (them.norm() * across) * them
            targets[task, other] = (1 - beta) * aim + beta * cosine
        total += own
    return total


def test_pcgrad_and_gradvac_are_those_on_the_gradients() -> None:
    jacobian = dict(families(11))["badly scaled"][:, :20] / 1e3
    pcgrad, gradvac = PCGrad(seed=3), GradVac(beta=0.2, seed=3)
    gradvac.setup([TaskInfo(str(task)) for task in range(11)])
    targets = torch.zeros(11, 11, dtype=torch.float64)
    for step in range(4):
        orders = random_orders(11, 3, step)
        expected = literal(jacobian, orders, torch.zeros(11, 11), 0.0)
        assert torch.allclose(jacobian.T @ pcgrad(jacobian @ jacobian.T), expected, rtol=1e-9)
        expected = literal(jacobian, orders, targets, 0.2)
        assert torch.allclose(
            jacobian.T @ gradvac(jacobian @ jacobian.T), expected, rtol=1e-4, atol=1e-4 * float(expected.norm())
        )
        assert torch.allclose(gradvac.target.double(), targets, atol=1e-6)
        jacobian = jacobian + 0.3 * jacobian.flip(0)


def test_after_gradvac_the_cosine_of_a_pair_is_its_target() -> None:
    method = GradVac(beta=0.5)
    method.setup([TaskInfo("a"), TaskInfo("b")])
    method(torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64))
    assert method.target.tolist() == [[0.0, pytest.approx(0.4)], [pytest.approx(0.4), 0.0]]
    # Unit gradients, cosine 0 for a target of 0.4: g_1 + a g_2 with a / sqrt(1 + a^2) = 0.4.
    weights = method(torch.eye(2, dtype=torch.float64))
    assert weights.tolist() == pytest.approx([1 + 0.4 / math.sqrt(1 - 0.16)] * 2, rel=1e-6)


@pytest.mark.parametrize("method", [PCGrad, GradVac])
@pytest.mark.parametrize("jacobian", CASES)
def test_nothing_overflows(jacobian: Tensor, method: type[GradientWeighting]) -> None:
    ready = method()
    ready.setup([TaskInfo(str(task)) for task in range(len(jacobian))])
    for _ in range(3):
        weights = ready(jacobian @ jacobian.T)
        assert weights.isfinite().all()
        assert (weights >= 1 - 1e-9).all()


@pytest.mark.parametrize("method", [PCGrad, GradVac])
def test_orders_depend_on_seed_and_step_and_go_on_after_a_resume(method: Callable[..., GradientWeighting]) -> None:
    tasks = [TaskInfo(str(task)) for task in range(11)]
    gramian = (lambda j: j @ j.T)(dict(families(11))["sum zero"])

    def made(**options: int) -> GradientWeighting:
        ready = method(**options)
        ready.setup(tasks)
        return ready

    first, other = made(), made(seed=1)
    weights = [first(gramian) for _ in range(3)]
    assert not torch.allclose(weights[0], weights[1])
    assert not torch.allclose(weights[0], other(gramian))
    again, resumed = made(), made()
    torch.manual_seed(5)
    assert torch.equal(again(gramian), weights[0])
    assert torch.equal(again(gramian), weights[1])
    state = {key: value.clone() for key, value in again.state_dict().items()}
    again.eval()
    again(gramian)
    again(gramian)
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    resumed.load_state_dict(state)
    assert torch.equal(resumed(gramian), weights[2])


def test_each_order_has_the_others_once_and_all_orders_come() -> None:
    seen = set()
    for step in range(200):
        orders = random_orders(4, 0, step)
        for task, others in enumerate(orders.tolist()):
            assert sorted([*others, task]) == [0, 1, 2, 3]
        seen.add(tuple(orders[0].tolist()))
    assert len(seen) == 6


def test_gradvac_leaves_absent_tasks_alone() -> None:
    method = GradVac(beta=0.5)
    method.setup([TaskInfo(name) for name in "abc"])
    method.target.fill_(0.25)
    method(torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64), present=torch.tensor([0, 2]))
    assert method.target[1].tolist() == method.target[:, 1].tolist() == [0.25] * 3
    assert method.target[0, 2] == pytest.approx(-0.125)


def test_a_bad_beta() -> None:
    with pytest.raises(ConfigError, match=r"model\.weighting\.init_args\.beta is 2"):
        GradVac(beta=2)


def test_time_a_call_under_conflict() -> None:
    jacobian = dict(families(40))["sum nearly zero"]
    gramian = jacobian @ jacobian.T
    for method, seconds in ((UPGrad(), 0.1), (PCGrad(), 0.05), (GradVac(), 0.05)):  # Ten times the usual, for busy machines.
        times = []
        for _ in range(5):
            start = time.perf_counter()
            method(gramian)
            times.append(time.perf_counter() - start)
        assert min(times) < seconds
