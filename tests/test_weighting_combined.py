from collections.abc import Sequence

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError
from mtl_lightning.weighting import FAMO, UW, Combined, GradientWeighting, LossWeighting, Probe, TaskInfo, Weighting

TASKS = [TaskInfo("a"), TaskInfo("b"), TaskInfo("c")]


class Mean(GradientWeighting):
    def __init__(self, lr: float | None = None, share: float = 0.0, batches: int = 0) -> None:
        super().__init__()
        self.lr, self.share, self.extra_batches = lr, share, batches
        self.called: list[str] = []

    def setup(self, tasks: Sequence[TaskInfo]) -> None:
        if self.lr is not None:
            self.w = nn.Parameter(torch.ones(len(tasks)))

    def owners(self) -> dict[nn.Parameter, int]:
        return {parameter: 0 for parameter in self.parameters()}

    def epoch_end(self, losses: Tensor, seen: Tensor) -> None:
        self.called.append("epoch_end")

    def explore(self, probe: Probe) -> None:
        self.called.append("explore")

    def revisit(self) -> float:
        return self.share

    def revisited(self, before: Tensor, after: Tensor, present: Tensor) -> None:
        self.called.append("revisited")

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        return gramian.new_full((len(gramian),), 1 / len(gramian))


def test_parts_are_set_up_with_their_names() -> None:
    losses, gradients = UW(lr=0.1), Mean()
    method = Combined(losses, gradients)
    method.prepare(TASKS)
    assert method.from_losses is losses and method.from_gradients is gradients
    assert list(method.names) == list(losses.names) == list(gradients.names) == ["a", "b", "c"]
    assert len(losses.log_variance) == 3
    assert method.lr == 0.1
    assert list(method.owners().values()) == [0, 1, 2]
    assert len(list(method.parameters())) == 3
    method.epoch_end(torch.ones(3), torch.ones(3, dtype=torch.bool))
    assert gradients.called == ["epoch_end"]


def test_the_learning_rate_is_that_of_the_part_with_parameters() -> None:
    method = Combined(FAMO(), Mean(lr=0.5))
    method.prepare(TASKS)
    assert method.lr == 0.5
    with pytest.raises(ConfigError, match=r"losses\.init_args\.lr is 0\.1 and .*gradients\.init_args\.lr is 0\.5"):
        Combined(UW(lr=0.1), Mean(lr=0.5)).prepare(TASKS)
    same = Combined(UW(lr=0.5), Mean(lr=0.5))
    same.prepare(TASKS)
    assert same.lr == 0.5 and len(same.owners()) == 4


def test_only_those_who_asked_see_the_losses_after_the_step() -> None:
    losses, gradients = FAMO(every=2, fraction=0.25), Mean(share=0.5)
    method = Combined(losses, gradients)
    method.prepare(TASKS)
    before, after, present = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 3.0]), torch.arange(3)
    assert method.revisit() == 0.5
    method.revisited(before, after, present)
    moved = losses.logits.clone()
    assert moved.abs().sum() > 0
    assert method.revisit() == 0.5
    method.revisited(before, after, present)
    assert torch.equal(losses.logits, moved)
    assert gradients.called == ["revisited", "revisited"]


def test_only_those_with_further_batches_explore() -> None:
    class Exploring(UW):
        extra_batches = 1
        probe: object = None

        def explore(self, probe: Probe) -> None:
            self.probe = probe

    probe, losses, gradients = object(), Exploring(), Mean()
    method = Combined(losses, gradients)
    method.explore(probe)  # type: ignore[arg-type]
    assert method.extra_batches == 1 and losses.probe is probe and gradients.called == []
    gradients = Mean(batches=2)
    method = Combined(losses, gradients)
    method.explore(probe)  # type: ignore[arg-type]
    assert method.extra_batches == 2 and gradients.called == ["explore"]
    assert Combined(UW(), Mean()).extra_batches == 0


def test_state_is_that_of_both_parts() -> None:
    method, resumed = Combined(FAMO(), Mean(lr=0.1)), Combined(FAMO(), Mean(lr=0.1))
    method.prepare(TASKS)
    resumed.prepare(TASKS)
    method.revisit()
    method.revisited(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 3.0]), torch.arange(3))
    resumed.load_state_dict(method.state_dict())
    losses = torch.tensor([1.0, 2.0, 3.0])
    first, second = method.from_losses, resumed.from_losses
    assert torch.equal(first(losses, torch.arange(3)), second(losses, torch.arange(3)))


@pytest.mark.parametrize("losses", ["UW", {"class_path": "UW", "init_args": {"lr": 0.1}}])
def test_from_yaml(losses: object) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--weighting", type=Weighting)
    settings = {"class_path": "Combined", "init_args": {"losses": losses, "gradients": f"{__name__}.Mean"}}
    built = parser.instantiate(parser.parse_object({"weighting": settings})).weighting
    assert isinstance(built, Combined)
    assert isinstance(built.losses, UW) and isinstance(built.losses, LossWeighting)
    assert isinstance(built.gradients, Mean)
