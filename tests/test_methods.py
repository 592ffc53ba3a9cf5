"""What must hold for every weighting method in training: two processes are as one, a checkpoint holds all state."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_lightning.gradients.sharing import Sharing
from tests.methods import NAMES, Run, at_features, methods, network
from tests.two_processes import STEPS, both, cases


def faults_of(name: str, options: dict[str, Any], first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    found = [
        f"replicas differ in {key}"
        for key, value in first.items()
        if not torch.equal(value.nan_to_num(7.5), second[key].nan_to_num(7.5))
    ]
    one = Run(name, **options).go(STEPS).state()
    assert {key for key in first if not key.startswith("single.")} == one.keys()
    for key, value in one.items():
        if not torch.allclose(value.double(), first[key].double(), rtol=1e-9, atol=1e-9, equal_nan=True):
            found.append(f"{key} after {STEPS} steps in float64")
    single = Run(name, dtype=torch.float32, **options).go(1).state()
    for key, value in single.items():
        scale, theirs = float(value.double().nan_to_num().abs().max()), first[f"single.{key}"].double()
        if not torch.allclose(value.double(), theirs, rtol=1e-4, atol=1e-4 * scale, equal_nan=True):
            found.append(f"{key} after a step in float32")
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What two processes end with, of every method: they are started once."""
    return both("tests.two_processes", tmp_path_factory.mktemp("ranks"), 400)


def test_two_processes_are_as_one(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    first, second = ranks
    faults = {}
    for name, options in cases():
        key = str((name, options))
        if found := faults_of(name, options, first[key], second[key]):
            faults[key] = found
    assert not faults


def test_processes_send_no_more_than_they_must(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    """Losses and counts in one message; beside what DistributedDataParallel sends, a Jacobian or a Gramian."""
    share, tasks = Sharing(network()[0]), len(NAMES)
    own = sum(parameter.numel() for parameters in share.own.values() for parameter in parameters)
    each = [parameter.numel() for parameter in network()[0].parameters()]
    expected = {
        ("Equal", "{}"): [3 * tasks + 1, *each],
        ("UW", "{}"): [3 * tasks + 1, *each, *[1] * tasks],
        ("UPGrad", "{}"): [3 * tasks + 1, tasks * share.size, tasks * tasks, tasks, own],
        ("UPGrad", "{'gradients': 'features'}"): [3 * tasks + 1, tasks * tasks, tasks, share.size, own],
    }
    for (name, options), numbers in expected.items():
        assert [rank["sent"][f"('{name}', {options})"].tolist() for rank in ranks] == [numbers] * 2, (name, options)


@pytest.mark.parametrize("name", methods())
def test_a_checkpoint_holds_all_state(name: str) -> None:
    options = {"update_every": 2} if at_features(name) else {}
    whole = Run(name, **options).go(7).state()
    before = Run(name, **options).go(4)
    after = Run(name, **options)
    after.model.load_state_dict(before.model.state_dict())
    after.method.load_state_dict(before.method.state_dict())
    if after.training.engine is not None and before.training.engine is not None:
        after.training.engine.load_state_dict(before.training.engine.state_dict())
    after.step = before.step
    found = after.go(3).state()
    for key, value in whole.items():
        assert torch.equal(value.nan_to_num(7.5), found[key].nan_to_num(7.5)), key


@pytest.mark.parametrize("name", methods())
def test_it_learns(name: str) -> None:
    run = Run(name)
    start = run.state()
    run.go(3)
    assert all(bool(value.isfinite().all()) for key, value in run.state().items() if key.startswith("model"))
    moved = {
        key.split(".")[1] for key, value in run.state().items() if key.startswith("model") and not torch.equal(value, start[key])
    }
    assert moved == {"architecture", "heads"}
    assert not run.said


def test_some_methods_work_at_features_and_some_cannot() -> None:
    assert at_features("NashMTL") and not at_features("GradDrop") and not at_features("FAMO")


def test_the_batches_of_the_test_conflict_only_on_average() -> None:
    """On each process alone two tasks agree, or one has no label; of all rows together they conflict. Methods must see that."""
    found = 0
    for seed in range(STEPS):
        signs = []
        for rank, world in ((0, 1), (0, 2), (1, 2)):
            run = Run("UPGrad", rank, world)
            run.step = seed
            losses = run.training.losses(run.model(run._batch(seed).inputs, None), run._batch(seed))
            assert run.training.engine is not None
            rows, present = run.training.engine.jacobian(losses, [], 1.0)
            grid = torch.zeros(4, 4, dtype=torch.float64)
            grid[present[:, None], present] = rows @ rows.T
            signs.append(grid)
        whole, first, second = signs
        found += int(((whole < 0) & (first >= 0) & (second >= 0)).sum())
    assert found > 0
