import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting import MGDA, CAGrad, FairGrad, GradientWeighting, NashMTL, TaskInfo

METHODS: list[Callable[[], GradientWeighting]] = [
    NashMTL,
    lambda: FairGrad(alpha=2.0),
    lambda: FairGrad(alpha=0.5),
    MGDA,
    lambda: MGDA("l2"),
    CAGrad,
    lambda: CAGrad(c=1.0),
]


def draw(tasks: int, seed: int, conflict: float = 1.0, size: int = 50, spread: float = 0.0) -> Tensor:
    """Gradients whose mean is shrunk by ``conflict`` and whose norms spread over 10^-spread to 10^spread."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
    rows = rows - (1 - conflict) * rows.mean(0)
    return rows * 10 ** (spread * (2 * torch.rand(tasks, 1, generator=generator, dtype=torch.float64) - 1))


def gramian(rows: Tensor) -> Tensor:
    return rows @ rows.T


def many() -> Iterator[Tensor]:
    """Gaussian, conflicting, few dimensions, badly scaled."""
    for tasks in (1, 2, 3, 5, 11, 40):
        for seed in range(8):
            yield draw(tasks, seed, size=500)
            yield draw(tasks, seed, conflict=0.1)
            yield draw(tasks, seed, conflict=0.003)
            yield draw(tasks, seed, size=max(2, tasks // 3)) + 3
            yield draw(tasks, seed, spread=6)
            yield draw(tasks, seed, conflict=0.05, spread=3)


def smallest_eigenvalue(matrix: Tensor) -> float:
    norm = matrix.diagonal().sqrt()
    return float(torch.linalg.eigvalsh(matrix / norm / norm[:, None])[0])


def test_nash_residual() -> None:
    certified = 0
    for rows in many():
        matrix = gramian(rows)
        method = NashMTL(max_norm=None)
        weights = method(matrix)
        if smallest_eigenvalue(matrix) >= 1e-6:
            certified += 1
            assert not method.pareto_stationary
            assert float((weights * (matrix @ weights) - 1).abs().max()) <= 1e-9
            assert method.residual <= 1e-9
    assert certified > 200


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fairgrad_residual(alpha: float) -> None:
    for rows in many():
        if float(rows.norm(dim=1).max() / rows.norm(dim=1).min()) < 1e6:
            matrix = gramian(rows)
            weights = FairGrad(alpha)(matrix)
            assert bool((weights > 0).all())
            if smallest_eigenvalue(matrix) >= 1e-4:
                assert float((weights ** (1 / alpha) * (matrix @ weights) - 1).abs().max()) <= 1e-6


def test_fairgrad_with_alpha_1_is_nash() -> None:
    for rows in many():
        matrix = gramian(rows)
        assert torch.equal(FairGrad(1.0)(matrix), NashMTL(max_norm=None)(matrix))


@pytest.mark.parametrize("cosine", [-0.9999, -0.5, 0.0, 0.7, 1.0])
def test_nash_of_two_tasks_in_closed_form(cosine: float) -> None:
    rows = torch.tensor([[3.0, 0.0], [1e-4 * cosine, 1e-4 * math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    direction = NashMTL(max_norm=None)(gramian(rows)) @ rows
    unit = rows / rows.norm(dim=1, keepdim=True)
    assert torch.allclose(direction, unit.sum(0) / math.sqrt(1 + cosine), rtol=1e-9)
    # The norm is the root of the number of tasks, or max_norm.
    assert float(direction.norm()) == pytest.approx(math.sqrt(2))
    assert float((NashMTL()(gramian(rows)) @ rows).norm()) == pytest.approx(1)
    assert float((NashMTL(max_norm=0.1)(gramian(rows)) @ rows).norm()) == pytest.approx(0.1)
    assert float((NashMTL(max_norm=9.0)(gramian(rows)) @ rows).norm()) == pytest.approx(math.sqrt(2))


def test_orthogonal_and_identical_tasks() -> None:
    squares = torch.tensor([1e-12, 4.0, 1e12], dtype=torch.float64)
    for alpha in (0.5, 1.0, 2.0):
        assert torch.allclose(FairGrad(alpha)(torch.diag(squares)), squares ** (-alpha / (1 + alpha)), rtol=1e-12)
    assert torch.allclose(MGDA()(torch.diag(squares)), (1 / squares) / (1 / squares).sum(), rtol=1e-12)
    same = torch.full((4, 4), 9.0, dtype=torch.float64)
    quarter = torch.full((4,), 0.25, dtype=torch.float64)
    assert torch.allclose(NashMTL(max_norm=None)(same), torch.full_like(quarter, 1 / 6))
    assert torch.allclose(MGDA()(same), quarter)
    assert torch.allclose(CAGrad(c=0.5)(same), quarter * 1.5)


@pytest.mark.parametrize("method", [NashMTL, FairGrad])
@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 2.0], [-1.0, -2.0]],
        [[1.0, 2.0], [-3.0, -6.0]],
        [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]],
        [[1.0, 0.0], [0.0, 1e-6], [-5.0, 0.0]],
    ],
    ids=["opposite", "opposite, of other length", "three", "two of three"],
)
def test_pareto_stationary(method: Callable[[], NashMTL | FairGrad], rows: list[list[float]]) -> None:
    solver = method()
    jacobian = torch.tensor(rows, dtype=torch.float64)
    weights = solver(gramian(jacobian))
    assert solver.pareto_stationary
    assert float(weights.sum()) == pytest.approx(1)
    assert bool((weights >= 0).all())
    assert float((weights @ jacobian).norm()) <= 1e-7
    solver(torch.eye(2, dtype=torch.float64))
    assert not solver.pareto_stationary


def test_mgda_gap_and_no_conflict() -> None:
    for rows in many():
        matrix = gramian(rows)
        weights = MGDA()(matrix)
        assert float(weights.min()) >= 0
        assert float(weights.sum()) == pytest.approx(1)
        products = matrix @ weights
        norm = float(weights @ products)
        if norm > 1e-9 * float(matrix.diagonal().min()):
            assert norm - float(products.min()) <= 1e-6 * norm


def test_mgda_of_two_tasks_in_closed_form() -> None:
    for rows in (draw(2, seed, conflict=0.3, size=2, spread=0.5) for seed in range(50)):
        first, second = rows
        share = float(((second - first) @ second / (second - first).square().sum()).clamp(0, 1))
        assert MGDA()(gramian(rows)).tolist() == pytest.approx([share, 1 - share], abs=1e-12)


@pytest.mark.parametrize("normalization", ["l2", "loss", "loss+"])
def test_mgda_normalized(normalization: str) -> None:
    rows = draw(5, 1, conflict=0.1, spread=1)
    losses = torch.tensor([0.1, 1.0, 7.0, 2.0, 30.0], dtype=torch.float64)
    size = {"l2": rows.norm(dim=1), "loss": losses, "loss+": losses * rows.norm(dim=1)}[normalization]
    weights = MGDA(normalization)(gramian(rows), losses)  # type: ignore[arg-type]
    direction = weights @ rows
    shortest = MGDA()(gramian(rows / size[:, None])) @ (rows / size[:, None])
    assert float(weights.sum()) == pytest.approx(1)
    assert torch.allclose(direction / direction.norm(), shortest / shortest.norm(), rtol=1e-7, atol=1e-9)
    assert bool((rows @ direction > 0).all())


def test_mgda_needs_positive_losses_for_some_normalizations() -> None:
    matrix = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ConfigError, match="needs the losses"):
        MGDA("loss")(matrix)
    method = MGDA("loss+")
    method.prepare([TaskInfo("depth"), TaskInfo("other"), TaskInfo("pose")])
    with pytest.raises(TrainingError, match="'pose'"):
        method(matrix, torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0, 2]))


@pytest.mark.parametrize("c", [0.05, 0.4, 1.0, 3.0])
def test_cagrad_reaches_the_bound_of_its_dual(c: float) -> None:
    """The least product of d with a gradient equals the dual's value, which bounds it for every direction in the ball."""
    for rows in many():
        matrix = gramian(rows)
        mean = rows.mean(0)
        direction = CAGrad(c)(matrix) @ rows
        share = CAGrad(c)(matrix) - 1 / len(rows)
        share = share / share.sum()
        combined = share @ rows
        radius = c * float(mean.norm())
        assert float((direction - mean).norm()) <= radius * (1 + 1e-9)
        bound = float(combined @ mean) + radius * float(combined.norm())
        # How far each product falls short of the bound, as a part of what that gradient can give.
        short = (bound - rows @ direction) / (rows.norm(dim=1) * (1 + c) * mean.norm())
        assert float(short.max()) <= 1e-9
        if c >= 1 and bound > 0:
            assert bool((rows @ direction >= -1e-9 * rows.norm(dim=1) * mean.norm()).all())


def test_cagrad_limits() -> None:
    rows = draw(4, 0, conflict=0.1)
    assert CAGrad(c=0.0)(gramian(rows)).tolist() == [0.25] * 4
    assert torch.allclose(CAGrad(c=0.7, rescale=True)(gramian(rows)) * 1.49, CAGrad(c=0.7)(gramian(rows)))
    # The mean gradient is 0: so is the direction.
    opposite = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    assert float((CAGrad()(gramian(opposite)) @ opposite).norm()) == 0
    # Only the hull holds 0, not the mean: with c = 1 the best direction is 0, with a smaller c it follows the mean.
    opposite[1] *= 2
    assert float((CAGrad(c=1.0)(gramian(opposite)) @ opposite).norm()) <= 1e-4
    assert torch.allclose(CAGrad(c=0.4)(gramian(opposite)) @ opposite, 0.6 * opposite.mean(0))


@pytest.mark.parametrize("method", METHODS)
def test_permutation(method: Callable[[], GradientWeighting]) -> None:
    for seed in range(10):
        rows = draw(7, seed, conflict=0.05, spread=1)
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(method()(gramian(rows[order])), method()(gramian(rows))[order], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_share_alike(method: Callable[[], GradientWeighting]) -> None:
    rows = draw(6, 3, conflict=0.5)
    rows[[2, 5]] = rows[0].clone()
    weights = method()(gramian(rows))
    assert weights[[2, 5]].tolist() == pytest.approx([float(weights[0])] * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("method", "power"),
    [
        (NashMTL, -1.0),
        (lambda: FairGrad(2.0), -4 / 3),
        (lambda: FairGrad(0.1), -2 / 11),
        (MGDA, 0.0),
        (lambda: MGDA("l2"), 0.0),
        (CAGrad, 0.0),
    ],
)
@pytest.mark.parametrize("factor", [1e-60, 1e-9, 1024.0, 1e9, 1e60])
def test_scale_of_all_losses(method: Callable[[], GradientWeighting], power: float, factor: float) -> None:
    rows = draw(5, 2, conflict=0.1)
    expected = method()(gramian(rows)) * factor**power
    assert torch.allclose(method()(gramian(factor * rows)), expected, rtol=1e-7, atol=0)


def test_nash_ignores_the_scale_of_each_loss() -> None:
    rows = draw(5, 2, conflict=0.1)
    factors = torch.tensor([1.0, 1e-6, 1e6, 3.0, 0.1], dtype=torch.float64)
    assert torch.allclose(NashMTL()(gramian(factors[:, None] * rows)) * factors, NashMTL()(gramian(rows)), rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_gradient_counts_as_absent(method: Callable[[], GradientWeighting]) -> None:
    rows = draw(4, 5, conflict=0.2)
    rows[2] = 0
    matrix = gramian(rows)
    weights = method()(matrix)
    kept = torch.tensor([0, 1, 3])
    assert float(weights[2]) == 0
    assert torch.equal(weights[kept], method()(matrix[kept][:, kept]))


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_gramians_have_finite_weights(method: Callable[[], GradientWeighting]) -> None:
    for matrix in (
        torch.zeros(3, 3, dtype=torch.float64),
        torch.zeros(1, 1, dtype=torch.float64),
        torch.full((40, 40), 1e-30, dtype=torch.float64),
        gramian(draw(40, 0, size=1)),
        gramian(draw(40, 0, size=5).float()).double(),
        torch.diag(torch.logspace(-12, 12, 9, dtype=torch.float64)),
    ):
        weights = method()(matrix)
        assert weights.dtype == torch.float64
        assert bool(weights.isfinite().all())
        assert bool((weights >= 0).all())
    assert method()(torch.zeros(4, 4, dtype=torch.float64)).tolist() == [0.25] * 4


def test_float32_rounding_that_leaves_a_gramian_indefinite() -> None:
    for seed in range(20):
        rows = draw(40, seed).float()
        rows[-1] = -rows[:-1].sum(0)
        method = NashMTL(max_norm=None)
        weights = method(gramian(rows).double())
        assert method.pareto_stationary or method.residual <= 1e-2
        assert bool((weights >= 0).all())


def test_what_heads_learn_from() -> None:
    assert [NashMTL.heads, MGDA.heads, FairGrad.heads, CAGrad.heads] == ["weighted", "weighted", "unweighted", "unweighted"]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: NashMTL(max_norm=0.0), "max_norm"),
        (lambda: FairGrad(alpha=0.0), "alpha"),
        (lambda: FairGrad(max_norm=-1.0), "max_norm"),
        (lambda: MGDA("L2"), "normalization"),  # type: ignore[arg-type]
        (lambda: CAGrad(c=-0.1), r"\.c is"),
        (lambda: CAGrad(c=math.nan), r"\.c is"),
    ],
)
def test_bad_options(make: Callable[[], GradientWeighting], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make()


def test_torchjd_mgda_is_not_shorter() -> None:
    torchjd = pytest.importorskip("torchjd.aggregation")
    for seed in range(5):
        rows = draw(6, seed, conflict=0.3)
        ours, theirs = MGDA()(gramian(rows)), torchjd.MGDAWeighting(epsilon=1e-9, max_iters=2000)(gramian(rows))
        assert float((ours @ rows).norm()) <= float((theirs @ rows).norm()) * (1 + 1e-9)
        assert torch.allclose(ours @ rows, theirs @ rows, atol=1e-2 * float(rows.norm(dim=1).mean()))


def test_torchjd_cagrad_agrees() -> None:
    torchjd = pytest.importorskip("torchjd.aggregation")
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    for seed in range(5):
        rows = draw(5, seed, conflict=0.3)
        theirs = torchjd.CAGradWeighting(c=0.4, norm_eps=1e-9)(gramian(rows))
        assert torch.allclose(CAGrad(c=0.4)(gramian(rows)), theirs, atol=1e-4)


def test_torchjd_fairgrad_agrees() -> None:
    torchjd = pytest.importorskip("torchjd.aggregation")
    pytest.importorskip("scipy")
    for seed in range(5):
        rows = draw(4, seed, conflict=0.5, size=5)
        for alpha in (1.0, 2.0):
            theirs = torchjd.FairGradWeighting(alpha=alpha)(gramian(rows))
            assert torch.allclose(FairGrad(alpha)(gramian(rows)), theirs, rtol=1e-3)
