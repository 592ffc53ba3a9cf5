import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting import (
    IMTLG,
    MGDA,
    AlignedMTL,
    ConFIG,
    DualProj,
    GradientWeighting,
    GradVac,
    PCGrad,
    TaskInfo,
    TorchJD,
    UPGrad,
)
from mtl_lightning.weighting.solvers.orders import random_orders
from tests.gramians import families, units

torchjd: Any = pytest.importorskip("torchjd.aggregation")


def exact_quadprog() -> Any:
    """TorchJD's projector without its regularization; its solver is not among our dependencies."""
    pytest.importorskip("qpsolvers")
    pytest.importorskip("quadprog")
    linalg: Any = pytest.importorskip("torchjd.linalg")
    return linalg.QuadprogProjector(norm_eps=0.0, reg_eps=1e-13)


@dataclass(frozen=True)
class Peer:
    """A method of ours and the same of theirs.

    Attributes:
        ours: makes it.
        theirs: makes an aggregator, from the Jacobian to the direction.
        tolerance: of the direction, relative to its length, but no less than a tenth of the gradients'.
        singular: whether they agree where unit gradients depend on each other; there may be many solutions.
        zero: whether they agree where a gradient is zero; theirs may divide by it.
        orders: what the random permutations of theirs are made of ours, if the method draws any.
    """

    ours: Callable[[], GradientWeighting]
    theirs: Callable[[], Any]
    tolerance: float = 1e-6
    singular: bool = True
    zero: bool = True
    orders: Callable[[int, list[int]], list[int]] | None = None


PEERS = {
    "UPGrad": Peer(UPGrad, lambda: torchjd.UPGrad(projector=exact_quadprog())),
    "DualProj": Peer(DualProj, lambda: torchjd.DualProj(projector=exact_quadprog())),
    "PCGrad": Peer(PCGrad, lambda: torchjd.PCGrad(), orders=lambda task, others: [*others, task]),
    "GradVac": Peer(
        lambda: GradVac(beta=0.5),
        lambda: torchjd.GradVac(beta=0.5, eps=0.0),
        # Positions among the others.
        orders=lambda task, others: [other - (other > task) for other in others],
        zero=False,
        singular=False,
    ),
    "AlignedMTL": Peer(AlignedMTL, lambda: torchjd.AlignedMTL()),
    "AlignedMTL, mean": Peer(lambda: AlignedMTL(scale="mean"), lambda: torchjd.AlignedMTL(scale_mode="rmse")),
    "ConFIG": Peer(ConFIG, lambda: torchjd.ConFIG()),
    # Theirs stops after so many Frank-Wolfe steps.
    "MGDA": Peer(MGDA, lambda: torchjd.MGDA(epsilon=1e-9, max_iters=1000), tolerance=0.1, zero=False),
    "IMTLG": Peer(IMTLG, lambda: torchjd.IMTLG(), singular=False, zero=False),
}


def cases() -> list[Any]:
    found = []
    for tasks in (2, 3, 11):
        for name, jacobian in families(tasks):
            # Theirs have absolute thresholds: gradients of usual sizes.
            if name in ("badly scaled", "tiny", "ill conditioned", "sum nearly zero", "nearly opposite"):
                continue
            zero = name == "one zero"
            singular = not zero and torch.linalg.matrix_rank(units(jacobian)[0]) < tasks
            found += [
                pytest.param(peer, jacobian, id=f"{method}: {tasks} {name}")
                for method, peer in PEERS.items()
                if (peer.zero or not zero) and (peer.singular or not singular)
            ]
    return found


@pytest.mark.parametrize(("peer", "jacobian"), cases())
def test_the_direction_is_theirs(peer: Peer, jacobian: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = len(jacobian)
    ours, theirs = peer.ours(), peer.theirs()
    ours.setup([TaskInfo(str(task)) for task in range(tasks)])
    drawn: list[Tensor] = []
    monkeypatch.setattr(torch, "randperm", lambda size: drawn.pop(0))
    for step in range(3 if peer.orders else 1):
        if peer.orders:
            drawn += [torch.tensor(peer.orders(task, row)) for task, row in enumerate(random_orders(tasks, 0, step).tolist())]
        expected = theirs(jacobian)
        direction = jacobian.T @ ours(jacobian @ jacobian.T)
        scale = max(float(expected.norm()), 0.1 * float(jacobian.norm(dim=1).mean()))
        assert float((direction - expected).norm()) <= peer.tolerance * scale


def made(*words: str) -> TorchJD:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--weighting", type=GradientWeighting)
    method = parser.instantiate(parser.parse_args(["--weighting", "TorchJD", *words])).weighting
    assert isinstance(method, TorchJD)
    return method


def gramian(tasks: int = 5) -> Tensor:
    jacobian = dict(families(tasks))["sum zero"]
    return jacobian @ jacobian.T


def test_by_class_path_with_options() -> None:
    method = made("--weighting.weighting", "torchjd.aggregation.AlignedMTLWeighting", "--weighting.weighting.scale_mode", "rmse")
    assert torch.allclose(method(gramian()), AlignedMTL(scale="mean")(gramian()))
    assert torch.allclose(TorchJD("torchjd.aggregation.IMTLGWeighting")(gramian()), TorchJD(torchjd.IMTLGWeighting())(gramian()))


def test_draws_by_seed_and_step_and_leaves_the_programs_random_numbers() -> None:
    first, again, other = (TorchJD(torchjd.PCGradWeighting(), seed) for seed in (0, 0, 1))
    torch.manual_seed(1)
    numbers = torch.get_rng_state()
    weights = [first(gramian()) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), numbers)
    torch.manual_seed(2)
    assert torch.equal(again(gramian()), weights[0])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(other(gramian()), weights[0])
    again.eval()
    again(gramian())
    assert int(again.step) == 1
    resumed = TorchJD(torchjd.PCGradWeighting())
    resumed.load_state_dict(again.state_dict())
    assert torch.equal(resumed(gramian()), weights[1])


def test_state_that_starts_as_none_is_loaded() -> None:
    method, resumed = TorchJD(torchjd.GradVacWeighting()), TorchJD(torchjd.GradVacWeighting())
    method(gramian())
    state = method.state_dict()
    assert len(state) == 2
    resumed.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        TorchJD(torchjd.PCGradWeighting()).load_state_dict(state)


def test_what_does_not_weigh_by_the_gramian() -> None:
    with pytest.raises(ConfigError, match=r"model\.weighting\.init_args\.weighting is Mean, .*UPGradWeighting"):
        made("--weighting.weighting", "torchjd.aggregation.Mean")
    with pytest.raises(ConfigError, match=r"'torchjd\.aggregation\.Nothing', which cannot be made"):
        made("--weighting.weighting", "torchjd.aggregation.Nothing")
    with pytest.raises(TrainingError, match=r"Linear gave \(5, 2\) for 5 tasks"):
        TorchJD(nn.Linear(5, 2, dtype=torch.float64))(gramian())


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(ConfigError, match=r"pip install 'mtl-lightning\[torchjd\]'"):
        made("--weighting.weighting", "torchjd.aggregation.UPGradWeighting")
