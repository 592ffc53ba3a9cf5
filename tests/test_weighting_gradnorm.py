import pytest
import torch

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting import GradNorm, TaskInfo

LOSSES = torch.tensor([2.0, 1.0, 4.0], dtype=torch.float64)


def ready(**options: object) -> GradNorm:
    method = GradNorm(**options)  # type: ignore[arg-type]
    method.prepare([TaskInfo(name) for name in "abc"])
    return method


def gramian(*norms: float) -> torch.Tensor:
    return torch.tensor(norms, dtype=torch.float64).square().diag()


def test_the_papers_objective_by_autograd_and_torchs_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    method = ready(lr=0.1, alpha=1.5)
    expected = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([expected], lr=0.1)
    first = None
    for _ in range(20):
        jacobian = torch.randn(3, 5, generator=generator, dtype=torch.float64) * torch.tensor([[1.0], [3.0], [0.5]])
        losses = torch.rand(3, generator=generator, dtype=torch.float64) + 0.5
        first = losses if first is None else first
        found = method(jacobian @ jacobian.T, losses)
        torch.testing.assert_close(found, expected.detach().double(), rtol=1e-5, atol=1e-6)
        rates = losses / first / (losses / first).mean()
        norms = expected * jacobian.norm(dim=1)
        target = (norms.mean() * rates**1.5).detach()
        optimizer.zero_grad()
        ((norms - target).abs().sum() / norms.mean().detach()).backward()
        optimizer.step()
        with torch.no_grad():
            expected.clamp_(min=1e-3).mul_(3 / expected.sum())


def test_equal_rates_lead_to_equal_norms() -> None:
    method = ready(lr=0.01, alpha=0.0)
    norms = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    for _ in range(1000):
        weights = method(norms.square().diag(), LOSSES)
    assert float(weights.sum()) == pytest.approx(3)
    pulled = weights * norms
    assert float(pulled.max() / pulled.min()) < 1.1


def test_the_slow_task_gains_weight() -> None:
    method = ready()
    for step in range(20):
        weights = method(gramian(1, 1, 1), LOSSES * torch.tensor([1.0, 0.9**step, 0.9**step]))
    assert weights[0] > 1.1
    assert weights[1] == pytest.approx(float(weights[2]), rel=1e-5)


def test_scale_of_the_losses_and_order_of_the_tasks_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    plain, scaled, turned = ready(), ready(), ready()
    order = torch.tensor([2, 0, 1])
    for _ in range(10):
        jacobian = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        losses = torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
        weights = plain(jacobian @ jacobian.T, losses)
        assert torch.equal(scaled(jacobian @ jacobian.T * 1024**2, losses * 1024), weights)
        torch.testing.assert_close(turned((jacobian @ jacobian.T)[order][:, order], losses[order]), weights[order])


def test_an_absent_task_rests_and_the_present_ones_sum_to_how_many_they_are() -> None:
    method = ready()
    method(gramian(1, 2, 3), LOSSES)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    present = torch.tensor([0, 2])
    for _ in range(3):
        weights = method(gramian(5, 1), LOSSES[present], present)
        assert float(weights.sum()) == pytest.approx(2)
    for name, value in method.state_dict().items():
        assert torch.equal(value[1], state[name][1]), name
    assert float(method.weights.sum()) == pytest.approx(3)
    assert method.weights[0] < state["weights"][0]


def test_a_task_first_seen_later_is_measured_from_there() -> None:
    method = ready()
    method(gramian(1, 1), LOSSES[:2], torch.tensor([0, 1]))
    method(gramian(1, 1, 1), LOSSES / 2)
    assert method.initial.tolist() == [2.0, 1.0, 2.0]


@pytest.mark.parametrize("norms", [(0, 0, 0), (0, 1, 1), (1e-6, 1, 1e6), (1e-150, 1e-150, 1e-150)])
def test_weights_stay_positive_and_finite(norms: tuple[float, ...]) -> None:
    method = ready(lr=0.5)
    for _ in range(30):
        weights = method(gramian(*norms), LOSSES)
        assert weights.isfinite().all() and (weights > 0).all()
        assert float(weights.sum()) == pytest.approx(3)
    if norms[0] == 0 and norms[1] > 0:
        assert float(weights[0]) == pytest.approx(1)


def test_eval_mode_moves_nothing_and_a_resumed_run_goes_on() -> None:
    method, resumed = ready(), ready()
    method(gramian(1, 2, 3), LOSSES)
    resumed.load_state_dict(method.state_dict())
    method.eval()
    first = method(gramian(3, 2, 1), LOSSES)
    assert torch.equal(method(gramian(3, 2, 1), LOSSES), first)
    method.train()
    for _ in range(3):
        assert torch.equal(method(gramian(3, 2, 1), LOSSES), resumed(gramian(3, 2, 1), LOSSES))


def test_options_and_losses_are_checked() -> None:
    assert (GradNorm().over, GradNorm(over="shared").over, GradNorm.heads) == ("last", "shared", "weighted")
    for options in ({"alpha": -1}, {"lr": 0}, {"over": "all"}):
        with pytest.raises(ConfigError, match=f"init_args.{next(iter(options))} is"):
            ready(**options)
    with pytest.raises(TrainingError, match="task 'b'"):
        ready()(gramian(1, 1, 1), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    with pytest.raises(TrainingError, match="none"):
        ready()(gramian(1, 1, 1))
