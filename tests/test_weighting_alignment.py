import pytest
import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting import IMTLG, AlignedMTL, ConFIG, GradientWeighting
from tests.gramians import families, units

CASES = [pytest.param(jacobian, id=f"{tasks} {name}") for tasks in (2, 3, 11, 40) for name, jacobian in families(tasks)]
FULL = [case for case in CASES if torch.linalg.eigvalsh((lambda j: j @ j.T)(units(case.values[0])[0]))[0] > 1e-6]  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [AlignedMTL, ConFIG, IMTLG])
@pytest.mark.parametrize("jacobian", CASES)
def test_weights_are_finite_and_follow_the_tasks_order(jacobian: Tensor, method: type[GradientWeighting]) -> None:
    gramian, order = jacobian @ jacobian.T, torch.randperm(len(jacobian), generator=torch.Generator().manual_seed(1))
    weights = method()(gramian)
    assert weights.isfinite().all()
    assert weights.dtype == torch.float64
    moved = method()(gramian[order][:, order])
    assert float((moved - weights[order]).norm()) <= 1e-4 * float(weights.norm()) + 1e-12


@pytest.mark.parametrize("jacobian", FULL)
def test_config_and_imtlg_have_one_cosine_with_all(jacobian: Tensor) -> None:
    rows, lengths = units(jacobian)
    gramian = jacobian @ jacobian.T
    direction = jacobian.T @ ConFIG()(gramian)
    cosines = rows @ direction / direction.norm()
    assert (cosines > 0).all()
    assert cosines.max() - cosines.min() <= 1e-7
    # Its length: the sum of the gradients' parts along it.
    assert float(direction.norm()) == pytest.approx(float((lengths * cosines).sum()), rel=1e-7)
    weights = IMTLG()(gramian)
    impartial = jacobian.T @ weights
    assert torch.allclose(impartial / impartial.norm(), direction / direction.norm(), atol=1e-7)
    sums = {float(weights.sum()), float(weights.abs().sum())}
    assert min(abs(value - 1) for value in sums) <= 1e-9


def test_imtlg_never_turns_round() -> None:
    # The short first gradient has a negative weight in the combination, and so would the sum.
    rows = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.9, 0.0], [1.0, -0.5, 0.5]], dtype=torch.float64)
    rows = rows / rows.norm(dim=1, keepdim=True)
    combination = torch.linalg.solve(rows @ rows.T, torch.ones(3, dtype=torch.float64))
    worst = int(combination.argmin())
    assert combination[worst] < 0
    jacobian = rows.clone()
    jacobian[worst] *= 0.01
    weights = IMTLG()(jacobian @ jacobian.T)
    assert (rows @ (jacobian.T @ weights) > 0).all()
    assert float(weights.abs().sum()) == pytest.approx(1)


def test_imtlg_of_two() -> None:
    # The bisector: weights are inverse to the lengths.
    gramian = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert IMTLG()(gramian).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_aligned_brings_all_components_to_the_shortest() -> None:
    jacobian = dict(families(11))["any"]
    gramian = jacobian @ jacobian.T
    values, vectors = torch.linalg.eigh(gramian)
    left = jacobian.T @ vectors / values.sqrt()  # Right singular vectors.
    aligned = left @ vectors.T * values[0].sqrt()  # J^T with all singular values the smallest.
    assert torch.allclose(jacobian.T @ AlignedMTL()(gramian), aligned.mean(1), rtol=1e-9, atol=1e-12)
    mean, median = AlignedMTL(scale="mean")(gramian), AlignedMTL(scale="median")(gramian)
    assert torch.allclose(mean / AlignedMTL()(gramian), (values.mean() / values[0]).sqrt().expand(11))
    assert torch.allclose(median / AlignedMTL()(gramian), (values[5] / values[0]).sqrt().expand(11))


def test_aligned_is_not_as_short_as_the_noise_in_a_dependent_gradient() -> None:
    first = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    jacobian = torch.cat([first, first.sum(0, keepdim=True) * 1.1]).double()  # In single precision: dependent up to 1e-7.
    gramian = jacobian @ jacobian.T
    assert float(torch.linalg.eigvalsh(gramian)[0]) > 0
    assert float((jacobian.T @ AlignedMTL()(gramian)).norm()) > 0.1 * float(jacobian.norm(dim=1).min())


@pytest.mark.parametrize(("method", "sum_"), [(AlignedMTL, 1.0), (ConFIG, 3.0), (IMTLG, 1.0)])
def test_orthogonal_and_identical_gradients(method: type[GradientWeighting], sum_: float) -> None:
    assert method()(torch.eye(3).double()).tolist() == pytest.approx([sum_ / 3] * 3)
    assert method()(4 * torch.ones(3, 3).double()).tolist() == pytest.approx([sum_ / 3] * 3)


@pytest.mark.parametrize(("method", "single", "nothing"), [(AlignedMTL, 1.0, 1 / 3), (ConFIG, 1.0, 0.0), (IMTLG, 1.0, 0.0)])
def test_one_task_and_no_gradient(method: type[GradientWeighting], single: float, nothing: float) -> None:
    assert method()(torch.tensor([[9.0]]).double()).tolist() == pytest.approx([single])
    assert method()(torch.zeros(3, 3).double()).tolist() == pytest.approx([nothing] * 3)


@pytest.mark.parametrize("method", [ConFIG, IMTLG])
def test_no_step_at_exactly_opposite_gradients(method: type[GradientWeighting]) -> None:
    gramian = torch.tensor([[1.0, -2.0], [-2.0, 4.0]], dtype=torch.float64)
    assert method()(gramian).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("method", [ConFIG, IMTLG])
def test_a_zero_gradient_has_weight_0_and_changes_nothing(method: type[GradientWeighting]) -> None:
    gramian = torch.tensor([[1.0, -0.5], [-0.5, 2.0]], dtype=torch.float64)
    wide = torch.zeros(3, 3, dtype=torch.float64)
    wide[1:, 1:] = gramian
    assert float(method()(wide)[0]) == 0
    assert torch.allclose(method()(wide)[1:], method()(gramian), rtol=1e-12)


@pytest.mark.parametrize("method", [AlignedMTL, ConFIG, IMTLG])
def test_a_common_scale_changes_no_weight(method: type[GradientWeighting]) -> None:
    jacobian = dict(families(11))["any"]
    gramian = jacobian @ jacobian.T
    assert torch.allclose(method()(gramian * 1024.0**2), method()(gramian), rtol=1e-9)


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match=r"init_args\.tolerance is 0.*expected more than 0"):
        AlignedMTL(tolerance=0)
    with pytest.raises(ConfigError, match=r"init_args\.scale is 'max', expected one of min, median, mean"):
        AlignedMTL(scale="max")  # type: ignore[arg-type]
