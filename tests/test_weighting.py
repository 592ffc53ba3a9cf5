import math

import pytest
import torch

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting import DWA, RLW, UW, DataSize, Equal, Fixed, LossWeighting, TaskInfo

LOSSES = torch.tensor([1.0, 4.0, 0.5])
ALL = torch.arange(3)
TASKS = [
    TaskInfo("a", weight=1.0, labelled=100, noise="gaussian"),
    TaskInfo("b", weight=2.0, labelled=400, noise="softmax"),
    TaskInfo("c", weight=5.0, labelled=500, noise="laplace"),
]


def ready(method: LossWeighting) -> LossWeighting:
    method.setup(TASKS)
    return method


def test_fixed_uses_the_importance_once() -> None:
    # The losses a method sees carry the importance already: lambda_t / weight_t is the same for all.
    weights = ready(Fixed())(LOSSES, ALL)
    effective = [float(weight) * task.weight for weight, task in zip(weights, TASKS, strict=True)]
    assert effective == pytest.approx([1 / 8, 2 / 8, 5 / 8])


def test_fixed_does_not_pass_an_absent_tasks_share_on() -> None:
    weights = ready(Fixed())(LOSSES[[0, 2]], torch.tensor([0, 2]))
    assert weights.tolist() == pytest.approx([1 / 8, 1 / 8])
    assert ready(Fixed(normalize=False))(LOSSES, ALL).tolist() == [1, 1, 1]


def test_equal() -> None:
    assert ready(Equal())(LOSSES, ALL).tolist() == [1, 1, 1]
    assert ready(Equal(mean=True))(LOSSES[:2], ALL[:2]).tolist() == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, [0.1, 0.4, 0.5]), (0.0, [1 / 3] * 3), (-1.0, [20 / 29, 5 / 29, 4 / 29])])
def test_data_size(alpha: float, expected: list[float]) -> None:
    assert ready(DataSize(alpha))(LOSSES, ALL).tolist() == pytest.approx(expected)


def test_data_size_without_counts_names_the_task() -> None:
    with pytest.raises(ConfigError, match="'x'"):
        DataSize().setup([TaskInfo("x")])


def test_uw_starts_at_the_papers_form_and_finds_the_optimum() -> None:
    method = ready(UW())
    assert method(LOSSES, ALL).tolist() == pytest.approx([0.5, 1.0, 1.0])
    # d/ds of L e^-s / 2 + s / 2 vanishes at e^s = L; of L e^-s + s / 2 at e^s = 2 L; of L e^(-s/2) + s / 2 at e^(s/2) = L.
    optimizer = torch.optim.LBFGS(method.parameters(), max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        objective = (method(LOSSES, ALL) * LOSSES).sum() + method.penalty(ALL)
        objective.backward()
        return objective

    optimizer.step(closure)
    found = [float(value.detach()) for value in method.parameters()]
    assert found == pytest.approx([math.log(1.0), math.log(8.0), 2 * math.log(0.5)], abs=1e-3)


def test_uw_leaves_an_absent_task_alone() -> None:
    method = ready(UW())
    present = torch.tensor([0, 2])
    ((method(LOSSES[present], present) * LOSSES[present]).sum() + method.penalty(present)).backward()
    assert method.log_variance[1].grad is None
    assert method.log_variance[0].grad is not None


def test_dwa_by_hand() -> None:
    method = ready(DWA(temperature=2.0))
    assert method(LOSSES, ALL).tolist() == pytest.approx([1, 1, 1])
    seen = torch.tensor([True, True, True])
    method.epoch_end(torch.tensor([2.0, 2.0, 4.0]), seen)
    assert method(LOSSES, ALL).tolist() == pytest.approx([1, 1, 1])
    method.epoch_end(torch.tensor([1.0, 2.0, 4.0]), seen)
    exponents = [math.exp(0.25), math.exp(0.5), math.exp(0.5)]
    assert method(LOSSES, ALL).tolist() == pytest.approx([3 * value / sum(exponents) for value in exponents])
    # Unseen in an epoch: its means rest.
    method.epoch_end(torch.tensor([9.0, 2.0, 4.0]), torch.tensor([False, True, True]))
    assert method.history[:, 0].tolist() == [2.0, 1.0]
    # Present tasks only, sum = how many they are.
    assert float(method(LOSSES[:2], ALL[:2]).sum()) == pytest.approx(2)


def test_rlw_draws_by_seed_and_step_and_goes_on_after_a_resume() -> None:
    first, again, other = ready(RLW()), ready(RLW()), ready(RLW(seed=1))
    draws = [first(LOSSES, ALL) for _ in range(4)]
    assert all(float(draw.sum()) == pytest.approx(1) for draw in draws)
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], other(LOSSES, ALL))
    state = None
    for step in range(2):
        assert torch.equal(again(LOSSES, ALL), draws[step])
        state = again.state_dict()
    resumed = ready(RLW())
    resumed.load_state_dict(state)  # type: ignore[arg-type]
    assert torch.equal(resumed(LOSSES, ALL), draws[2])


def test_all_losses_scaled_leave_data_independent_weights_alone() -> None:
    for method in (Fixed(), Equal(), DataSize(), RLW()):
        ready(method)
        twin = type(method)()
        twin.setup(TASKS)
        assert torch.equal(method(LOSSES, ALL), twin(LOSSES * 1024, ALL))
