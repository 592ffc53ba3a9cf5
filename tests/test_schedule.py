import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from mtl_lightning.errors import ConfigError
from mtl_lightning.schedule import WarmupCosine


def optimizer(*rates: float) -> SGD:
    return SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def walk(scheduler: WarmupCosine, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_by_hand_for_every_group() -> None:
    # Of 10 steps, 0.4 warm up: 4 steps at 1/5 .. 4/5 of the way from floor to peak, the peak, then a half cosine of length 6.
    rates = walk(WarmupCosine(optimizer(1.0, 0.01), warmup=0.4, floor=0.1, total_steps=10), 11)
    ways = [0.2, 0.4, 0.6, 0.8, 1.0, *((1 + math.cos(math.pi * k / 6)) / 2 for k in range(1, 6)), 0.0]
    for (first, second), way in zip(rates, ways, strict=True):
        assert first == pytest.approx(0.1 + 0.9 * way, abs=1e-12)
        assert second == pytest.approx(0.01 * (0.1 + 0.9 * way), abs=1e-12)


def test_first_and_last_step_learn_and_it_stays_down_after_the_end() -> None:
    rates = [rate for (rate,) in walk(WarmupCosine(optimizer(1.0), total_steps=100), 130)]
    assert rates[0] > 0 and rates[99] > 0
    assert max(rates) == rates[5] == 1.0
    assert rates[100:] == [0.0] * 30
    assert rates[:6] == sorted(rates[:6]) and rates[5:] == sorted(rates[5:], reverse=True)


def test_no_warmup_starts_at_the_peak_and_one_step_is_a_run() -> None:
    assert walk(WarmupCosine(optimizer(3.0), warmup=0.0, total_steps=7), 1) == [[3.0]]
    assert walk(WarmupCosine(optimizer(3.0), total_steps=1), 1) == [[3.0]]


def test_total_steps_filled_in_later_is_the_same_curve() -> None:
    late = WarmupCosine(optimizer(1.0, 0.5), warmup=0.3, floor=0.05)
    late.total_steps = 20
    given = WarmupCosine(optimizer(1.0, 0.5), warmup=0.3, floor=0.05, total_steps=20)
    assert late.get_last_lr() == given.get_last_lr()
    assert walk(late, 25) == walk(given, 25)


def test_a_learning_rate_in_a_tensor_is_kept_in_it() -> None:
    rate = torch.tensor(1.0)
    scheduler = WarmupCosine(AdamW([nn.Parameter(torch.zeros(1))], lr=rate), warmup=0.5)
    scheduler.total_steps = 2
    assert scheduler.optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5


def test_resume_goes_on_exactly() -> None:
    straight = walk(WarmupCosine(optimizer(1.0), total_steps=30), 30)
    first = WarmupCosine(optimizer(1.0), total_steps=30)
    walk(first, 11)
    second = WarmupCosine(optimizer(1.0))
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert walk(second, 19) == straight[11:]


def test_a_longer_run_keeps_its_own_length_on_resume() -> None:
    first = WarmupCosine(optimizer(1.0), total_steps=10)
    walk(first, 10)
    second = WarmupCosine(optimizer(1.0), total_steps=20)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert walk(second, 10)[1:] == walk(WarmupCosine(optimizer(1.0), total_steps=20), 20)[11:]


def test_mistakes_name_the_argument() -> None:
    with pytest.raises(ConfigError, match="warmup is 1"):
        WarmupCosine(optimizer(1.0), warmup=1.0)
    with pytest.raises(ConfigError, match=r"floor is -0\.1"):
        WarmupCosine(optimizer(1.0), floor=-0.1)
    with pytest.raises(ConfigError, match="total_steps is 0"):
        WarmupCosine(optimizer(1.0), total_steps=0)
    unknown = WarmupCosine(optimizer(1.0))
    unknown.optimizer.step()
    with pytest.raises(ConfigError, match="total_steps is not set"):
        unknown.step()
