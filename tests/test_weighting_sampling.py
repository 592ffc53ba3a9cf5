import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting import LossWeighting, MoDo, SDMGrad, TaskInfo
from mtl_lightning.weighting.solvers import shares

LOSSES = torch.tensor([1.0, 4.0, 0.5])
ALL = torch.arange(3)
EACH = [MoDo, SDMGrad]


class Batches:
    """A probe that holds the gradients of the further batches."""

    lr = 0.1
    parameters: Sequence[nn.Parameter] = ()

    def __init__(self, *further: tuple[Tensor, Tensor]) -> None:
        self.further = further

    def losses(self, batch: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def gradient(self, batch: int, weights: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def jacobian(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.further[batch - 1]


def ready(method: LossWeighting) -> LossWeighting:
    method.prepare([TaskInfo(name) for name in "abc"])
    return method


def draw(seed: int, tasks: Tensor = ALL) -> tuple[Tensor, Tensor]:
    noise = torch.randn(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise + torch.tensor([[1.0], [2.0], [1.5]]))[tasks], tasks


def test_projection_satisfies_its_optimality_conditions() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 11, 40):
        for scale in (1e-9, 1.0, 1e9):
            point = scale * torch.randn(size, generator=generator, dtype=torch.float64)
            found = shares.project(point)
            assert float(found.sum()) == pytest.approx(1, abs=1e-14) and (found >= 0).all()
            # point - found is one constant where found > 0, and nowhere more than that
            gap = point - found
            level = gap[found > 0]
            assert float(level.max() - level.min()) <= 1e-14 * max(1, scale)
            assert (gap <= level.max() + 1e-14 * max(1, scale)).all()
            torch.testing.assert_close(shares.project(found), found, rtol=0, atol=1e-14)


def test_shares_of_some_tasks() -> None:
    weights = torch.tensor([0.5, 0.3, 0.2, 0.0])
    some = torch.tensor([1, 2])
    torch.testing.assert_close(shares.share(weights, some), torch.tensor([0.6, 0.4], dtype=torch.float64))
    shares.reassign(weights, some, torch.tensor([0.1, 0.9], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.05, 0.45, 0.0]))
    assert shares.share(weights, torch.tensor([3])).tolist() == [1.0]


def test_modo_by_hand() -> None:
    method = ready(MoDo(gamma=0.02, rho=0.9))
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for seed in range(6):
        first, second = draw(seed)[0], draw(seed + 100)[0]
        method.explore(Batches(draw(seed), draw(seed + 100)))
        weights = shares.project(weights - 0.02 * (first @ (second.T @ weights) + 0.9 * weights))
        torch.testing.assert_close(method(LOSSES.double(), ALL), weights)


def test_modo_finds_the_min_norm_weights_where_both_batches_agree() -> None:
    method = ready(MoDo(gamma=0.05, rho=0.0))
    jacobian = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).diag()
    for _ in range(800):
        method.explore(Batches((jacobian, ALL), (jacobian, ALL)))
    torch.testing.assert_close(method(LOSSES.double(), ALL), torch.tensor([36.0, 9.0, 4.0], dtype=torch.float64) / 49)


def test_sdmgrad_by_torchs_sgd() -> None:
    method = ready(SDMGrad(direction=0.4, steps=7, lr=0.3))
    weights = torch.full((3,), 1 / 3, dtype=torch.float64, requires_grad=True)
    for seed in range(4):
        first, second = draw(seed)[0], (draw(seed)[0] + 0.3 * draw(seed + 50)[0])
        method.explore(Batches((first, ALL), (second, ALL)))
        gramian = first @ second.T
        gramian = gramian / gramian.diagonal().clamp(min=0).sqrt().mean() ** 2
        optimizer = torch.optim.SGD([weights], lr=0.3, momentum=0.5)
        for _ in range(7):
            weights.grad = gramian @ weights.detach() + 0.4 * gramian.mean(1)
            optimizer.step()
            weights.data = shares.project(weights.data)
        torch.testing.assert_close(method(LOSSES.double(), ALL), (weights.detach() + 0.4 / 3) / 1.4)


def test_sdmgrad_does_not_see_the_scale_of_all_losses_and_reaches_the_mean_for_a_large_pull() -> None:
    plain, scaled, pulled = ready(SDMGrad()), ready(SDMGrad()), ready(SDMGrad(direction=1e6))
    for seed in range(3):
        batches = draw(seed), draw(seed + 9)
        for method in (plain, pulled):
            method.explore(Batches(*batches))
        scaled.explore(Batches(*((jacobian * 1024, tasks) for jacobian, tasks in batches)))
    assert torch.equal(plain(LOSSES, ALL), scaled(LOSSES, ALL))
    assert pulled(LOSSES, ALL).tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)


@pytest.mark.parametrize("kind", EACH)
def test_moves_for_tasks_in_both_batches_only(kind: type[LossWeighting]) -> None:
    method, twin = ready(kind()), ready(kind())
    first, second = torch.tensor([0, 1]), torch.tensor([0, 1, 2])
    method.explore(Batches(draw(0, first), draw(5, second)))
    state = method.state_dict()["shares"]
    assert float(state[2]) == pytest.approx(1 / 3) and float(state.sum()) == pytest.approx(1)
    assert not torch.equal(state[:2], torch.full_like(state[:2], 1 / 3))
    # What the third task's gradient was in one of them is of no account.
    twin.explore(Batches(draw(0, first), draw(5, first)))
    torch.testing.assert_close(twin.state_dict()["shares"], state)
    kept = state.clone()
    method.explore(Batches(draw(1, torch.tensor([0])), draw(2, torch.tensor([2]))))
    assert torch.equal(method.state_dict()["shares"], kept)


@pytest.mark.parametrize("kind", EACH)
def test_forward_is_pure_and_sums_to_one(kind: type[LossWeighting]) -> None:
    method = ready(kind())
    assert method.extra_batches == 2
    assert method(LOSSES, ALL).tolist() == pytest.approx([1 / 3] * 3)
    method.explore(Batches(draw(0), draw(1)))
    some = torch.tensor([0, 2])
    assert float(method(LOSSES[some], some).sum()) == pytest.approx(1)
    assert torch.equal(method(LOSSES, ALL), method(LOSSES * 7, ALL))
    assert method(LOSSES, ALL).dtype == LOSSES.dtype
    resumed = ready(kind())
    resumed.load_state_dict(method.state_dict())
    for each in (method, resumed):
        each.explore(Batches(draw(2), draw(3)))
    assert torch.equal(method(LOSSES, ALL), resumed(LOSSES, ALL))


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e6, 1e-6])
def test_odd_gradients_leave_usable_weights(kind: type[LossWeighting], value: float) -> None:
    method = ready(kind())
    jacobian = draw(0)[0].float()
    jacobian[1] *= value
    method.explore(Batches((jacobian, ALL), (jacobian * 2, ALL)))
    method.explore(Batches((jacobian * 0, ALL), (jacobian * 0, ALL)))
    weights = method(LOSSES, ALL)
    assert weights.isfinite().all() and (weights >= 0).all() and float(weights.sum()) == pytest.approx(1)
    if not math.isfinite(value):
        assert float(weights[1]) == pytest.approx(1 / 3)
        assert float(weights[0]) != pytest.approx(1 / 3)


def test_options_are_checked() -> None:
    wrong: list[tuple[type[LossWeighting], dict[str, float]]] = [
        (MoDo, {"gamma": 0}),
        (MoDo, {"rho": -1}),
        (SDMGrad, {"direction": -1}),
        (SDMGrad, {"steps": 0}),
        (SDMGrad, {"lr": 0}),
    ]
    for kind, options in wrong:
        with pytest.raises(ConfigError, match=f"init_args.{next(iter(options))} is"):
            kind(**options)
