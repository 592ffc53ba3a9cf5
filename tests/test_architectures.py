"""What must hold for every architecture over every encoder under every weighting."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtl_lightning import encoders
from mtl_lightning.encoders import Encoder
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features
from tests.cells import ARCHITECTURES, ENCODERS, Cell, Trial, every_cell, network, pairwise
from tests.two_cells import STEPS, cells, digest
from tests.two_processes import both

FEW = pairwise()
CELLS = [
    pytest.param(cell, id="-".join(cell), marks=[] if cell in FEW else [pytest.mark.slow])
    for cell in sorted(every_cell(), key=lambda cell: cell not in FEW)
]
NETWORKS = [(a, e) for a, e in product(ARCHITECTURES, ENCODERS) if not Cell(a, e, "Equal").refused]


def by_autograd(trial: Trial, seed: int) -> tuple[dict[str, dict[str, Tensor | None]], dict[str, Tensor]]:
    """The gradient of each task's loss and of the architecture's penalties, by the parameters' names."""
    names, parameters = zip(*trial.model.named_parameters(), strict=True)
    trial.model.architecture.set_epoch(0)
    losses = trial.losses(seed)
    penalties = list(trial.model.architecture.penalties().values())
    found = {}
    for place in losses.present.tolist():
        task = list(trial.tasks)[place]
        by = torch.autograd.grad(losses.scalars[task], parameters, retain_graph=True, allow_unused=True)
        found[task] = dict(zip(names, by, strict=True))
    extra = torch.autograd.grad(sum(penalties), parameters, allow_unused=True) if penalties else [None] * len(names)
    zeros = [torch.zeros_like(p) if by is None else by for p, by in zip(parameters, extra, strict=True)]
    return found, dict(zip(names, zeros, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_every_parameter_gets_the_gradient_its_owners_imply(cell: Cell) -> None:
    if cell.refused:
        with pytest.raises(ConfigError, match=cell.refused):
            Trial(cell)
        return
    check_gradients(cell, seed=0)
    if cell.encoder == "SmallCNN":
        check_gradients(cell, seed=2)  # a batch without any label of task c


def check_gradients(cell: Cell, seed: int) -> None:
    expected, penalty = by_autograd(Trial(cell), seed)
    trial = Trial(cell)
    step = trial.backward(seed)
    owners, weights = trial.model.owners(), {task: step.weights.get(place) for place, task in enumerate(trial.tasks)}
    assert [task for task, weight in weights.items() if weight is not None] == list(expected)
    for name, parameter in trial.model.named_parameters():
        users, total = owners.pop(parameter), penalty[name].clone()
        if not users & set(expected):
            continue  # it rests: who trains takes a penalty's gradient away
        # Under PCGrad what is one task's alone learns from its loss as it is.
        one = cell.weighting == "PCGrad" and len(users) == 1
        for task, gradients in expected.items():
            gradient = gradients[name]
            assert (gradient is not None) == (task in users), f"{name} belongs to {sorted(users)}, {task} has {gradient}"
            total += 0.0 if gradient is None else gradient * (1.0 if one else weights[task])
        found = torch.zeros_like(total) if parameter.grad is None else parameter.grad
        assert torch.allclose(found, total, rtol=1e-8, atol=1e-11), f"{name}: {(found - total).abs().max()}"
    assert not owners


@pytest.mark.parametrize(("architecture", "encoder"), NETWORKS)
def test_gradients_are_those_of_finite_differences(architecture: str, encoder: str) -> None:
    """One number of each of a sample of the parameters."""
    trial, small = Trial(Cell(architecture, encoder, "Equal")), 1e-6
    expected, _ = by_autograd(trial, seed=0)
    generator, named = torch.Generator().manual_seed(0), list(trial.model.named_parameters())
    for number in torch.randperm(len(named), generator=generator)[:3].tolist():
        name, parameter = named[number]
        place = int(torch.randint(0, parameter.numel(), (), generator=generator))
        flat, sides = parameter.data.view(-1), []
        kept = float(flat[place])
        for side in (kept + small, kept - small):
            flat[place] = side
            with torch.no_grad():
                sides.append(trial.losses(0).values)
        flat[place] = kept
        for task, change in zip(trial.tasks, ((sides[0] - sides[1]) / (2 * small)).tolist(), strict=True):
            gradient = expected[task][name]
            exact = 0.0 if gradient is None else float(gradient.flatten()[place])
            assert change == pytest.approx(exact, rel=1e-4, abs=1e-7), f"{task} by {name}"


@pytest.mark.parametrize(("architecture", "encoder"), NETWORKS)
def test_a_checkpoint_predicts_the_same(architecture: str, encoder: str, tmp_path: Path) -> None:
    """Also where a task's features are asked for alone."""
    cell = Cell(architecture, encoder, "Equal")
    trial = Trial(cell).go(1)
    torch.save(trial.model.state_dict(), tmp_path / "state.pt")
    other, _ = network(cell)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    batch = trial.batch(5)
    with torch.no_grad():
        expected, found = (model.eval()(batch.inputs, batch.padding) for model in (trial.model, other))
        assert all(torch.equal(prediction, found[task]) for task, prediction in expected.items())
        source = Features(next(iter(batch.inputs.values())))
        every = other.architecture(source)
        for task in expected:
            alone = other.architecture(source, [task])
            assert list(alone) == [task]
            assert [level.tensor.shape[1] for level in alone[task]] == [spec.channels for spec in other.architecture.specs(task)]
            for level, same in zip(alone[task], every[task], strict=True):
                torch.testing.assert_close(level.tensor, same.tensor, rtol=1e-9, atol=1e-12)


FAMILIES: dict[str, Callable[[], Encoder]] = {
    "DenseNet": lambda: encoders.DenseNet("densenet121", stages=2),
    "EfficientNet": lambda: encoders.EfficientNet("efficientnet_b0", stages=3),
    "GoogLeNet": lambda: encoders.GoogLeNet(stages=3),
    "MobileNet": lambda: encoders.MobileNet("mobilenet_v3_small"),
    "RegNet": lambda: encoders.RegNet("regnet_y_400mf", stages=3),
    "Swin": lambda: encoders.Swin("swin_t", stages=2),
    "VGG": lambda: encoders.VGG("vgg11_bn", stages=3),
    "Timm": lambda: encoders.Timm("convnext_atto", stages=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_of_encoders(family: str, architecture: str) -> None:
    """Features as promised, and a gradient by every parameter from the tasks that own it."""
    if family == "Timm":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture](FAMILIES[family](), ["a", "b", "c"]).train()
    model.set_epoch(0)
    pyramids, owners = model(Features(torch.rand(2, 3, 64, 64))), model.owners()
    parameters = list(model.parameters())
    assert set(owners) == set(parameters)
    for task, pyramid in pyramids.items():
        for level, spec in zip(pyramid, model.specs(task), strict=True):
            assert level.tensor.shape[:2] == (2, spec.channels)
            assert level.tensor.shape[-1] == 64 // spec.stride
        total = torch.stack([level.tensor.square().mean() for level in pyramid]).sum()
        found = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            assert (gradient is not None) == (task in owners[parameter])


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
def test_two_processes_are_as_one(every: bool, tmp_path: Path) -> None:
    """Of each combination that makes sense, in one test: the two processes are started once."""
    first, second = both("tests.two_cells", tmp_path, 3000, "every" if every else "few")
    faults = []
    for cell in cells(every):
        one, key = digest(Trial(cell).go(STEPS).state()), str(cell)
        faults += [f"{key}: replicas differ in {k}" for k, v in first[key].items() if not torch.equal(v, second[key][k])]
        faults += [f"{key}: {k}" for k, v in one.items() if not torch.allclose(v, first[key][k], rtol=1e-9, atol=1e-9)]
    assert not faults
