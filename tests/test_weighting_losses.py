import copy
import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting import GLS, IMTLL, STCH, CoV, GO4Align, LossWeighting, ScaleInvariant, TaskInfo
from mtl_lightning.weighting.go4align import group_means

LOSSES = torch.tensor([1.5, 4.0, 0.25], dtype=torch.float64)
ALL = torch.arange(3)
SEEN = torch.tensor([True, True, True])
METHODS: list[Callable[[], LossWeighting]] = [ScaleInvariant, GLS, CoV, IMTLL, lambda: STCH(warmup=1), GO4Align]


def ready(method: LossWeighting) -> LossWeighting:
    method.prepare([TaskInfo("a"), TaskInfo("b", weight=2.0), TaskInfo("c")])
    return method.double()


def gradient(objective: Callable[[Tensor], Tensor], losses: Tensor) -> list[float]:
    losses = losses.clone().requires_grad_()
    objective(losses).backward()
    assert losses.grad is not None
    return losses.grad.tolist()


def used(make: Callable[[], LossWeighting]) -> LossWeighting:
    """Some steps and an epoch in: state that is not the first."""
    method = ready(make())
    for step in range(5):
        method(LOSSES * torch.tensor([1.1, 0.8, 1.0 + 0.1 * step]) ** step, ALL)
    method.epoch_end(LOSSES, SEEN)
    return method


@pytest.mark.parametrize("present", [ALL, torch.tensor([0, 2]), torch.tensor([1])])
def test_weights_are_the_gradient_of_the_objective(present: Tensor) -> None:
    losses, count = LOSSES[present], len(present)
    stch, reference = ready(STCH(mu=0.5, warmup=1)), torch.tensor([1.0, 5.0, 0.125], dtype=torch.float64)[present]
    stch.epoch_end(torch.tensor([1.0, 5.0, 0.125]), SEEN)
    objectives: list[tuple[LossWeighting, Callable[[Tensor], Tensor]]] = [
        (ready(ScaleInvariant()), lambda x: x.log().sum()),
        (ready(GLS()), lambda x: x.prod() ** (1 / count)),
        (ready(STCH()), lambda x: x.log().sum()),
        (stch, lambda x: count * 0.5 * ((x / reference).log() / 0.5).logsumexp(0)),
    ]
    for method, objective in objectives:
        assert method(losses, present).tolist() == pytest.approx(gradient(objective, losses), rel=1e-12), method


@pytest.mark.parametrize("make", METHODS)
def test_an_absent_task_keeps_its_state(make: Callable[[], LossWeighting]) -> None:
    method, present = used(make), torch.tensor([0, 2])
    before = {name: value.clone() for name, value in method.state_dict().items()}
    weights = method(LOSSES[present] * 1.3, present)
    assert weights.shape == (2,)
    method.epoch_end(LOSSES * 1.3, torch.tensor([True, False, True]))
    for name, value in method.state_dict().items():
        if value.dim():
            assert torch.equal(value[1], before[name][1]), name


@pytest.mark.parametrize("make", METHODS)
def test_a_resumed_run_goes_on_exactly(make: Callable[[], LossWeighting]) -> None:
    method, resumed = used(make), ready(make())
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    for step in range(3):
        losses = LOSSES * (1 + 0.1 * step)
        assert torch.equal(method(losses, ALL), resumed(losses, ALL))


@pytest.mark.parametrize("make", METHODS)
def test_evaluation_leaves_no_trace(make: Callable[[], LossWeighting]) -> None:
    method = used(make).eval()
    before = copy.deepcopy(method.state_dict())
    method(LOSSES * 3, ALL)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


@pytest.mark.parametrize("make", METHODS)
def test_the_order_of_the_tasks_does_not_matter(make: Callable[[], LossWeighting]) -> None:
    order = torch.tensor([2, 0, 1])
    method, other = ready(make()), ready(make())
    for step in range(4):
        losses = LOSSES * torch.tensor([1.0, 0.9, 1.2], dtype=torch.float64) ** step
        assert other(losses[order], ALL).tolist() == pytest.approx(method(losses, ALL)[order].tolist(), rel=1e-12)


@pytest.mark.parametrize("make", [ScaleInvariant, GLS, STCH, GO4Align])
@pytest.mark.parametrize("bad", [0.0, -0.5])
def test_a_loss_without_logarithm_names_task_and_loss(make: Callable[[], LossWeighting], bad: float) -> None:
    with pytest.raises(TrainingError, match=f"'b' is {bad:g}"):
        ready(make())(torch.tensor([1.0, bad]), torch.tensor([0, 1]))


def test_cov_refuses_negative_losses_and_bears_zeros() -> None:
    with pytest.raises(TrainingError, match="'c' is -1"):
        ready(CoV())(torch.tensor([1.0, -1.0]), torch.tensor([0, 2]))
    method = ready(CoV())
    for _ in range(5):
        weights = method(torch.zeros(3), ALL)
    assert weights.tolist() == pytest.approx([1 / 3] * 3)
    assert method.mean_ratio.tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: STCH(mu=0), "mu is 0"),
        (lambda: STCH(warmup=0), "warmup is 0"),
        (lambda: CoV(decay=1.0), "decay is 1"),
        (lambda: GO4Align(groups=0), "groups is 0"),
        (lambda: GO4Align(beta=-1.0), "beta is -1"),
        (lambda: GO4Align(beta=math.nan), "beta is nan"),
    ],
)
def test_bad_options_are_named(make: Callable[[], LossWeighting], option: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.weighting\.init_args\.{option}.*expected"):
        make()


def test_scales() -> None:
    scaled = LOSSES * torch.tensor([1024.0, 1.0, 1 / 1024])
    for make in (ScaleInvariant, GLS):
        plain, other = ready(make())(LOSSES, ALL), ready(make())(scaled, ALL)
        # The scaled losses' gradients are scaled as well: the direction is the same.
        ratio = (other * scaled) / (plain * LOSSES)
        assert ratio.tolist() == pytest.approx([float(ratio[0])] * 3)
    equal = torch.full((3,), 2.0)
    assert ready(GLS())(equal, ALL).tolist() == pytest.approx([1 / 3] * 3)
    assert ready(GO4Align())(equal, ALL).tolist() == pytest.approx([1.0] * 3)
    assert float((ready(STCH())(LOSSES, ALL) * LOSSES).sum()) == pytest.approx(3)


def test_gls_does_not_overflow() -> None:
    weights = ready(GLS())(torch.tensor([1e30, 1e30, 1e-3]), ALL)
    assert weights.isfinite().all()


def test_imtl_l_makes_all_scaled_losses_one() -> None:
    method = ready(IMTLL())
    assert method(LOSSES, ALL).tolist() == [1, 1, 1]
    optimizer = torch.optim.LBFGS(method.parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = method.penalty(ALL)
        assert penalty is not None
        objective = (method(LOSSES, ALL) * LOSSES).sum() + penalty
        objective.backward()
        return objective

    optimizer.step(closure)
    assert (method(LOSSES, ALL) * LOSSES).tolist() == pytest.approx([1, 1, 1])
    assert list(method.owners().values()) == [0, 1, 2]


def test_imtl_l_leaves_an_absent_task_alone() -> None:
    method, present = ready(IMTLL(lr=0.1)), torch.tensor([0, 2])
    penalty = method.penalty(present)
    assert penalty is not None
    ((method(LOSSES[present], present) * LOSSES[present]).sum() + penalty).backward()
    assert [parameter.grad is None for parameter in method.parameters()] == [False, True, False]
    assert method.lr == 0.1


@pytest.mark.parametrize("decay", [None, 0.9])
def test_cov_by_hand(decay: float | None) -> None:
    method = ready(CoV(decay=decay))
    generator = torch.Generator().manual_seed(0)
    series = torch.rand(12, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.1, 1.0, 3.0])

    def mean(values: list[float]) -> float:
        if decay is None:
            return sum(values) / len(values)
        return sum((1 if i == 0 else 1 - decay) * decay ** (len(values) - 1 - i) * value for i, value in enumerate(values))

    past: list[list[float]] = [[], [], []]
    ratios: list[list[float]] = [[], [], []]
    for step, losses in enumerate(series):
        expected = [1 / 3] * 3
        if step >= 2:
            variation = []
            for values in ratios:
                squares = sum((r - (mean(values[:i]) if i else 0)) * (r - mean(values[: i + 1])) for i, r in enumerate(values))
                variation.append(math.sqrt(squares / step) / mean(values))
            expected = [value / sum(variation) for value in variation]
            if decay is None:
                deviations = [torch.tensor(values).std(correction=0) for values in ratios]
                assert variation == pytest.approx([float(d) / mean(v) for d, v in zip(deviations, ratios, strict=True)], rel=1e-4)
        assert method(losses, ALL).tolist() == pytest.approx(expected)
        for task, loss in enumerate(losses.tolist()):
            ratios[task].append(loss / mean(past[task]) if past[task] else 1.0)
            past[task].append(loss)


def test_cov_gives_a_new_task_its_even_share() -> None:
    method, two = ready(CoV()), torch.tensor([0, 1])
    for step in range(6):
        method(torch.tensor([1.0 + step % 2, 2.0 + 0.1 * step]), two)
    alone = method.eval()(LOSSES[:2], two)
    weights = method(LOSSES, ALL)
    assert float(weights[2]) == pytest.approx(1 / 3)
    assert weights[:2].tolist() == pytest.approx((alone * 2 / 3).tolist())
    # One step is no variation either.
    method.train()
    method(LOSSES, ALL)
    assert float(method(LOSSES, ALL)[2]) == pytest.approx(1 / 3)
    assert float(method(LOSSES, ALL)[2]) != pytest.approx(1 / 3)


def test_stch_takes_z_from_the_last_epoch_of_the_warm_up() -> None:
    method = ready(STCH(mu=1.0, warmup=2))
    logarithms = (1 / LOSSES).tolist()
    method.epoch_end(torch.tensor([7.0, 7.0, 7.0]), SEEN)
    assert method(LOSSES, ALL).tolist() == pytest.approx(logarithms)
    # The second task had its last labels in the first epoch, the third has none yet.
    method.reference[2] = torch.nan
    method.epoch_end(torch.tensor([2.0, 9.0, 9.0]), torch.tensor([True, False, False]))
    ratios = torch.tensor([1.5 / 2, 4 / 7, 1.0], dtype=torch.float64)
    assert method(LOSSES, ALL).tolist() == pytest.approx((3 * ratios / ratios.sum() / LOSSES).tolist())
    method.epoch_end(torch.tensor([9.0, 9.0, 0.5]), SEEN)
    assert method.reference.tolist() == [2.0, 7.0, 0.5]


def test_stch_follows_the_worst_task_where_mu_is_small() -> None:
    method = ready(STCH(mu=1e-3, warmup=1))
    method.epoch_end(torch.tensor([1.0, 1.0, 1.0]), SEEN)
    assert (method(LOSSES, ALL) * LOSSES).tolist() == pytest.approx([0, 3, 0], abs=1e-12)


def test_go4align_by_hand() -> None:
    method, beta = ready(GO4Align(groups=2, beta=0.1)), 0.1
    smoothness = torch.full((3,), 1 / 3, dtype=torch.float64)
    for step in range(4):
        losses = LOSSES + 0.1 * step
        smoothness = smoothness * torch.exp(-beta * losses)
        smoothness = smoothness / smoothness.sum()
        indicator = losses.sum() / losses * smoothness
        # 0.25 has by far the largest indicator.
        pair = float(indicator[:2].mean())
        assert method(losses, ALL).tolist() == pytest.approx([pair, pair, float(indicator[2])])


def test_go4align_with_a_group_a_task_or_one_for_all() -> None:
    indicator = LOSSES.sum() / LOSSES / 3
    assert ready(GO4Align(groups=7, beta=0.0))(LOSSES, ALL).tolist() == pytest.approx(indicator.tolist())
    assert ready(GO4Align(groups=1, beta=0.0))(LOSSES, ALL).tolist() == pytest.approx([float(indicator.mean())] * 3)


def test_go4align_does_not_favour_an_absent_task() -> None:
    method, two = ready(GO4Align(groups=3, beta=0.5)), torch.tensor([0, 1])
    for _ in range(50):
        method(torch.tensor([1.0, 1.0]), two)
    assert method(torch.ones(3), ALL).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6])
def test_groups_have_the_least_squares_of_all_partitions(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    for scale in (1.0, 1e-6, 1e6):
        values = torch.randn(6, generator=generator, dtype=torch.float64).exp() * scale
        ordered = values.sort().values
        costs = []
        for cuts in combinations(range(1, 6), groups - 1):
            parts = torch.tensor_split(ordered, list(cuts))
            costs.append(float(sum(((part - part.mean()) ** 2).sum() for part in parts)))
        found = group_means(values, groups)
        assert float(((values - found) ** 2).sum()) == pytest.approx(min(costs), rel=1e-9, abs=1e-12 * scale**2)
        assert len(found.unique()) <= groups
        assert float(found.sum()) == pytest.approx(float(values.sum()))


def test_groups_of_equal_numbers() -> None:
    assert group_means(torch.full((5,), 3.0, dtype=torch.float64), 3).tolist() == [3.0] * 5
    assert group_means(torch.tensor([1.0, 9.0, 1.0, 9.0]), 2).tolist() == [1.0, 9.0, 1.0, 9.0]
