import math

import pytest
import torch

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting import DBMTL, ExcessMTL, GradDrop, GradientWeighting, MoCo, TaskInfo, excess, graddrop

SIZE = 7
ALL = torch.arange(3)
EACH = [GradDrop, DBMTL, MoCo, ExcessMTL]


def ready(method: GradientWeighting, dtype: torch.dtype = torch.float64) -> GradientWeighting:
    method.prepare([TaskInfo(name) for name in "abc"])
    method.allocate(SIZE, dtype)
    return method


def draw(seed: int, tasks: int = 3, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
    return jacobian, torch.rand(tasks, generator=generator, dtype=torch.float64) + 0.5


def step(
    method: GradientWeighting, jacobian: torch.Tensor, losses: torch.Tensor, present: torch.Tensor = ALL
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows and the weights of a step, as the engine asks for them."""
    rows = method.rows(jacobian.clone(), losses, present)
    wide = rows.double()
    return rows, method(wide @ wide.T, losses, present)


@pytest.mark.parametrize("kind", EACH)
def test_a_resumed_run_goes_on_and_eval_mode_moves_nothing(kind: type[GradientWeighting]) -> None:
    method, resumed = ready(kind()), ready(kind())
    for seed in range(3):
        step(method, *draw(seed))
    resumed.load_state_dict(method.state_dict())
    method.eval()
    state = {name: value.clone() for name, value in method.state_dict().items()}
    trial = step(method, *draw(9))
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    method.train()
    for seed in (9, 10):
        found, expected = step(method, *draw(seed)), step(resumed, *draw(seed))
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        assert seed == 10 or torch.equal(found[0], trial[0])


@pytest.mark.parametrize("kind", EACH)
def test_an_absent_tasks_memory_rests(kind: type[GradientWeighting]) -> None:
    method = ready(kind())
    step(method, *draw(0))
    state = {name: value.clone() for name, value in method.state_dict().items() if value.ndim}
    present = torch.tensor([0, 2])
    jacobian, losses = draw(1)
    rows, weights = step(method, jacobian[present], losses[present], present)
    assert rows.shape == (2, SIZE) and weights.shape == (2,) and weights.dtype == torch.float64
    for name, value in state.items():
        assert torch.equal(method.state_dict()[name][1], value[1]), name
        assert not torch.equal(method.state_dict()[name][0], value[0]) or name == "first"


@pytest.mark.parametrize("kind", [DBMTL, MoCo, ExcessMTL])
def test_the_order_of_the_tasks_does_not_matter(kind: type[GradientWeighting]) -> None:
    method, turned = ready(kind()), ready(kind())
    order = torch.tensor([2, 0, 1])
    for seed in range(5):
        jacobian, losses = draw(seed)
        rows, weights = step(method, jacobian, losses)
        other, permuted = step(turned, jacobian[order], losses[order])
        torch.testing.assert_close(other, rows[order])
        torch.testing.assert_close(permuted, weights[order])


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("scale", [(1.0, 1.0, 1.0), (1e-6, 1.0, 1e6), (0.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_scales_and_zero_gradients(kind: type[GradientWeighting], scale: tuple[float, ...]) -> None:
    method = ready(kind(), torch.float32)
    for seed in range(5):
        jacobian, losses = draw(seed)
        rows, weights = step(method, (jacobian * torch.tensor(scale)[:, None]).float(), losses)
        assert rows.dtype == torch.float32
        assert rows.isfinite().all() and weights.isfinite().all() and (weights >= 0).all()
    if scale[0] == 0 and kind is not MoCo:
        assert weights[0] <= 1.0


@pytest.mark.parametrize("kind", EACH)
def test_one_task_alone(kind: type[GradientWeighting]) -> None:
    jacobian, losses = draw(0)
    method = ready(kind())
    only = torch.tensor([1])
    rows, weights = step(method, jacobian[only], losses[only], only)
    assert weights.tolist() == pytest.approx([1.0])
    if kind in (GradDrop, ExcessMTL):
        assert torch.equal(rows, jacobian[only])


def test_graddrop_keeps_one_sign_an_element() -> None:
    jacobian, losses = draw(0, size=4000)
    method = GradDrop()
    rows, weights = step(method, jacobian, losses)
    assert weights.tolist() == [1, 1, 1]
    assert ((rows == jacobian) | (rows == 0)).all()
    positive, negative = (rows > 0).any(0), (rows < 0).any(0)
    assert not (positive & negative).any()
    # Of the sign that stays, all stay.
    assert torch.equal(rows[:, positive], jacobian[:, positive].clamp(min=0))
    assert torch.equal(rows[:, negative], jacobian[:, negative].clamp(max=0))
    agree = (jacobian > 0).all(0) | (jacobian < 0).all(0)
    assert torch.equal(rows[:, agree], jacobian[:, agree])


def test_graddrop_keeps_the_positive_sign_as_often_as_it_is_pure() -> None:
    jacobian = torch.tensor([[3.0], [-1.0]]).expand(2, 20_000)
    rows, _ = step(GradDrop(), jacobian, torch.ones(2), ALL[:2])
    assert float((rows[0] != 0).double().mean()) == pytest.approx(0.75, abs=0.02)  # (1 + 2 / 4) / 2; six deviations
    assert torch.equal(rows[0] != 0, rows[1] == 0)


def test_graddrop_leaks_and_draws_by_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    jacobian, losses = draw(0, size=500)
    strict, leaky, whole = GradDrop(), GradDrop(leak=0.25), GradDrop(leak=1.0)
    rows = step(strict, jacobian, losses)[0]
    torch.testing.assert_close(step(leaky, jacobian, losses)[0], 0.25 * jacobian + 0.75 * rows)
    assert torch.equal(step(whole, jacobian, losses)[0], jacobian)
    assert not torch.equal(step(strict, jacobian, losses)[0], rows)
    assert not torch.equal(step(GradDrop(seed=1), jacobian, losses)[0], rows)
    torch.rand(3)  # the global generator plays no part
    assert torch.equal(step(GradDrop(), jacobian, losses)[0], rows)
    monkeypatch.setattr(graddrop, "CHUNK", 64)
    pieces = step(GradDrop(), jacobian, losses)[0]
    assert ((pieces == jacobian) | (pieces == 0)).all() and (pieces != 0).any(1).all()


def test_db_mtl_by_hand() -> None:
    method = ready(DBMTL())
    average = torch.zeros(3, SIZE, dtype=torch.float64)
    for k in range(1, 6):
        jacobian, losses = draw(k)
        rows, weights = step(method, jacobian, losses)
        share = 0.9 / math.sqrt(k)
        average = share * average + (1 - share) * jacobian / losses[:, None]
        torch.testing.assert_close(rows, average)
        pulled = (weights[:, None] * rows).norm(dim=1)
        torch.testing.assert_close(pulled, average.norm(dim=1).max().expand(3))


def test_db_mtl_does_not_see_the_scale_of_losses() -> None:
    plain, scaled = ready(DBMTL()), ready(DBMTL())
    factor = torch.tensor([1024.0, 1.0, 2.0**-20], dtype=torch.float64)
    for seed in range(4):
        jacobian, losses = draw(seed)
        expected, found = step(plain, jacobian, losses), step(scaled, jacobian * factor[:, None], losses * factor)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_db_mtl_counts_the_steps_of_each_task_and_takes_the_logarithm_of_positive_losses() -> None:
    method = ready(DBMTL())
    jacobian, losses = draw(0)
    step(method, jacobian[:2], losses[:2], ALL[:2])
    step(method, jacobian, losses)
    torch.testing.assert_close(method.average[2], 0.1 * jacobian[2] / losses[2])
    with pytest.raises(TrainingError, match="'b'"):
        step(method, jacobian, torch.tensor([1.0, 0.0, 1.0]))


def nearest(point: torch.Tensor) -> torch.Tensor:
    """The projection on the simplex by bisection."""
    low, high = point.min() - 1, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (point - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (point - high).clamp(min=0)


@pytest.mark.parametrize("normalize", [False, True])
def test_moco_by_hand(normalize: bool) -> None:
    method = ready(MoCo(rho=0.2, gamma=0.3, normalize=normalize))
    tracked, weights = torch.zeros(3, SIZE, dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64)
    for k in range(1, 8):
        jacobian, losses = draw(k)
        rows, found = step(method, jacobian, losses)
        gradients = jacobian / jacobian.norm(dim=1, keepdim=True) * losses[:, None] if normalize else jacobian
        tracked = tracked - 0.5 / math.sqrt(k) * (tracked - gradients)
        weights = nearest(weights - 0.3 / math.sqrt(k) * (tracked @ (tracked.T @ weights) + 0.2 * weights))
        torch.testing.assert_close(rows, tracked)
        torch.testing.assert_close(found, weights)


def test_moco_finds_the_min_norm_weights_of_steady_gradients() -> None:
    method = ready(MoCo(beta_power=0.0, gamma_power=0.0))
    jacobian = torch.zeros(3, SIZE, dtype=torch.float64)
    jacobian[0, 0], jacobian[1, 1], jacobian[2, 2] = 1.0, 2.0, 3.0
    for _ in range(600):
        _, weights = step(method, jacobian, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([36.0, 9.0, 4.0], dtype=torch.float64) / 49, atol=1e-8, rtol=0)


def test_moco_divides_what_the_present_tasks_have_together() -> None:
    method = ready(MoCo())
    step(method, *draw(0))
    kept = float(method.shares[1])
    present = torch.tensor([0, 2])
    jacobian, losses = draw(1)
    _, weights = step(method, jacobian[present], losses[present], present)
    assert float(weights.sum()) == pytest.approx(1)
    assert float(method.shares.sum()) == pytest.approx(1) and float(method.shares[1]) == kept


@pytest.mark.parametrize("chunk", [3, 1000])
def test_excess_by_hand(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excess, "CHUNK", chunk)
    method = ready(ExcessMTL(eta=0.5))
    squares, weights, first = torch.zeros(3, SIZE, dtype=torch.float64), torch.ones(3, dtype=torch.float64), None
    for seed in range(6):
        jacobian, losses = draw(seed)
        rows, found = step(method, jacobian, losses)
        assert torch.equal(rows, jacobian)
        squares = squares + jacobian**2
        risk = (jacobian**2 / squares.sqrt()).sum(1)
        if first is None:
            first = risk
            torch.testing.assert_close(first, jacobian.abs().sum(1))
        else:
            weights = weights * torch.exp(0.5 * risk / first)
            weights = 3 * weights / weights.sum()
        torch.testing.assert_close(found, weights)


def test_excess_forgets_the_scale_of_a_loss_and_does_not_overflow() -> None:
    plain, scaled = ready(ExcessMTL(eta=1.0)), ready(ExcessMTL(eta=1.0))
    factor = torch.tensor([1024.0, 1.0, 2.0**-20], dtype=torch.float64)
    for seed in range(4):
        jacobian, losses = draw(seed)
        torch.testing.assert_close(step(scaled, jacobian * factor[:, None], losses)[1], step(plain, jacobian, losses)[1])
    jacobian[0] *= 1e6
    _, weights = step(plain, jacobian, losses)
    assert weights.isfinite().all() and float(weights.sum()) == pytest.approx(3)


def test_excess_does_not_forget_a_rare_task() -> None:
    method = ready(ExcessMTL(eta=0.5))
    step(method, *draw(0))
    for seed in range(50):
        jacobian, losses = draw(seed)
        step(method, jacobian[:2], losses[:2], ALL[:2])
    _, weights = step(method, *draw(99))
    assert weights[2] > 0.5  # the present ones' growth is not held against it


def test_options_are_checked() -> None:
    wrong: list[tuple[type[GradientWeighting], dict[str, float]]] = [
        (GradDrop, {"leak": 1.5}),
        (DBMTL, {"beta": 1.0}),
        (DBMTL, {"power": -1}),
        (MoCo, {"beta": 0}),
        (MoCo, {"gamma": 0}),
        (MoCo, {"rho": -1}),
        (MoCo, {"gamma_power": -1}),
        (ExcessMTL, {"eta": 0}),
    ]
    for kind, options in wrong:
        with pytest.raises(ConfigError, match=f"init_args.{next(iter(options))} is"):
            kind(**options)
    assert all(kind.needs_rows for kind in EACH)
