"""Mixtures of experts: closed forms, who owns what, what runs, padding, penalties, errors."""

import copy
import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl_lightning.architectures import CGC, PLE, Architecture, DSelectK, HardSharing, MMoE
from mtl_lightning.architectures.gates import Gate, pooled
from mtl_lightning.architectures.parts import blend, run
from mtl_lightning.architectures.selectors import Selectors, smooth_step
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec
from tests.test_distributed import run as run_distributed

TASKS = ["a", "b", "c"]
CASES: list[tuple[type[Architecture], dict[str, Any]]] = [
    (MMoE, {"experts": 3}),
    (MMoE, {"experts": 2, "shared": 0}),
    (CGC, {"shared_experts": 2, "own_experts": 1}),
    (CGC, {"shared": 0}),
    (PLE, {"shared": 0}),
    (PLE, {"shared": 0, "own_experts": 2, "levels": [1, 3]}),
    (PLE, {"shared": 1}),
    (DSelectK, {"experts": 3}),
    (DSelectK, {"experts": 4, "selected": 1, "static": True, "shared": 0}),
    (DSelectK, {"experts": 1, "selected": 1}),
]
cases = pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))


def build(kind: type[Architecture], tasks: Sequence[str] = TASKS, widths: Sequence[int] = (4, 6, 5), **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(SmallCNN(list(widths), norm=False), list(tasks), **options).double()  # type: ignore[call-arg]


def image(rows: int = 3) -> Features:
    return Features(torch.rand(rows, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def total(pyramid: Sequence[Features]) -> Tensor:
    """A number that every element of every level has its own share in."""
    found = []
    for level in pyramid:
        for part in [level.tensor] + ([] if level.token is None else [level.token]):
            weights = torch.linspace(-1, 2, part.numel(), dtype=part.dtype).view_as(part)
            found.append((part.square() * weights).sum())
    return torch.stack(found).sum()


class Words(Encoder):
    """Text as a map of height 1, with a summary of its own."""

    def __init__(self) -> None:
        class First(Stage):
            def step(self, features: Features) -> Features:
                valid = (features.tensor > 0).double()[:, None, None]
                tensor = self.body(features.tensor).transpose(1, 2).unsqueeze(2) * valid
                return Features(tensor, valid, tensor.sum((2, 3)) / valid.sum((2, 3)))

        class Later(Stage):
            def step(self, features: Features) -> Features:
                assert features.token is not None
                found = features.like(self.body(features.tensor))
                return Features(found.tensor, found.valid, features.token * found.tensor.amax((2, 3)))

        spec = FeatureSpec(4, token=True)
        later = [Later(nn.Sequential(nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), nn.Tanh()), spec) for _ in range(2)]
        super().__init__([First(nn.Embedding(9, 4), spec), *later])

    def start(self, image: Features) -> Features:
        return image


@cases
def test_owners_are_those_of_autograd_and_only_they_run(kind: type[Architecture], options: dict[str, Any]) -> None:
    model = build(kind, **options)
    ran: set[nn.Module] = set()
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: ran.add(module))
    owners, every = model.owners(), model(image())
    assert set(owners) == set(model.parameters())
    for task in TASKS:
        ran.clear()
        alone = model(image(), [task])
        alone_ran = set(ran)
        assert list(alone) == [task]
        for wanted in (every[task], alone[task]):
            found = torch.autograd.grad(total(wanted), list(owners), allow_unused=True, retain_graph=True)
            reached = {parameter for parameter, gradient in zip(owners, found, strict=True) if gradient is not None}
            assert reached == {parameter for parameter, users in owners.items() if task in users}
        assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(every[task], alone[task], strict=True))
        stages = [module for module in model.modules() if isinstance(module, Stage)]
        used = [stage for stage in stages if task in owners[next(stage.parameters())]]
        assert {module for module in alone_ran if isinstance(module, Stage)} == set(used)
        assert all(task in owners[next(gate.parameters())] for gate in alone_ran if isinstance(gate, Gate | Selectors))
    assert {stage for level in model.stages() for stage in level} == set(stages)
    for level, spec in zip(model.stages(), model.specs("a"), strict=True):
        assert all(stage.spec == spec for stage in level)


def test_every_owner_has_a_gradient_that_is_not_zero() -> None:
    model = build(PLE, shared=0, own_experts=2)
    owners = model.owners()
    for task, pyramid in model(image()).items():
        found = torch.autograd.grad(total(pyramid), list(owners), allow_unused=True, retain_graph=True)
        assert all(bool(g.any()) for g, users in zip(found, owners.values(), strict=True) if task in users and g is not None)
    # The experts of all levels but the last, and the gates of the first of three, come before a shared gate.
    experts, gates = model.own["b"][1], model.gates
    assert [len(owners[stage.body.conv.weight]) for stage in experts] == [3, 3, 1]
    assert [len(owners[level["b"].router.bias]) for level in gates] == [3, 1, 1]


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_one_expert_is_hard_sharing(shared: int) -> None:
    model, hard = build(MMoE, experts=1, shared=shared), build(HardSharing)
    mine, theirs = model(image()), hard(image())
    torch.stack([total(mine[task]) for task in TASKS]).sum().backward()
    torch.stack([total(theirs[task]) for task in TASKS]).sum().backward()
    for task in TASKS:
        assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(mine[task], theirs[task], strict=True))
    # Three equal gradients add up at another place in the graph.
    for name, parameter in hard.encoder.named_parameters():
        torch.testing.assert_close(model.encoder.get_parameter(name).grad, parameter.grad, rtol=1e-12, atol=1e-12)
    assert all(not gate.router.bias.grad.any() for gate in model.gates.values())


def test_mmoe_mixes_whole_pyramids_by_a_softmax_of_the_pooled_trunk() -> None:
    model = build(MMoE, experts=2)
    trunk = run([model.encoder.stages[0]], model.encoder.start(image()))
    one, two = run(model.encoder.stages[1:], trunk[-1]), run(model.further[0], trunk[-1])
    for task, pyramid in model(image()).items():
        router = model.gates[task].router
        weights = (trunk[0].tensor.mean((2, 3)) @ router.weight.T + router.bias).softmax(1)
        assert torch.equal(pyramid[0].tensor, trunk[0].tensor)
        for level, a, b in zip(pyramid[1:], one, two, strict=True):
            mixed = weights[:, 0, None, None, None] * a.tensor + weights[:, 1, None, None, None] * b.tensor
            torch.testing.assert_close(level.tensor, mixed)


@cases
def test_gates_add_up_to_one_and_are_tables_while_watched(kind: type[Architecture], options: dict[str, Any]) -> None:
    model = build(kind, **options)
    assert model.tables() == {}
    model.watch(True)
    model(image())
    model(image(2))
    tables = model.tables()
    assert set(tables) == ({f"gates_{n + 1}" for n in range(len(model.levels))} if kind is PLE and len(model.levels) > 1
                           else {"gates"})  # fmt: skip
    for table in tables.values():
        assert table.values.shape == (len(table.rows), len(table.columns)) and table.rows[:3] == TASKS
        if kind is not DSelectK or model.gates["a"].complete:
            torch.testing.assert_close(table.values.nansum(1), torch.ones(len(table.rows), dtype=torch.float64))
        else:
            assert bool((table.values.sum(1) < 1).all())
    model.watch(False)


def force(gate: Gate, chosen: int) -> None:
    with torch.no_grad():
        if gate.router.weight is not None:
            gate.router.weight.zero_()
        gate.router.bias.fill_(-1e4)[chosen] = 0.0


def test_gates_that_choose_own_experts_make_separate_networks() -> None:
    model = build(CGC, shared_experts=2, own_experts=1, shared=0)
    for task in TASKS:
        force(model.gates[0][task], 2)
        alone = run(model.own[task][0], model.encoder.start(image()))
        assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(model(image())[task], alone, strict=True))


def test_gates_that_choose_a_shared_expert_make_hard_sharing() -> None:
    model, hard = build(PLE, shared=1), build(HardSharing)
    for gates in [*(level.values() for level in model.gates), model.common_gates]:
        for gate in gates:
            force(gate, 0)
    for task, pyramid in model(image()).items():
        assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(pyramid, hard(image())[task], strict=True))


def test_the_shared_gate_of_ple_hands_a_tasks_expert_to_others() -> None:
    model = build(PLE, shared=1)  # the first of two levels is stage 2
    force(model.common_gates[0], 2)  # after one shared expert comes that of a, then that of b
    for task in TASKS:
        force(model.gates[0][task], 1)
        force(model.gates[1][task], 0)
    trunk = run(model.encoder.stages[:1], model.encoder.start(image()))
    theirs = model.own["b"][0][0](trunk[-1])
    expected = model.encoder.stages[2](theirs)
    for task, pyramid in model(image()).items():
        assert torch.equal(pyramid[1].tensor, model.own[task][0][0](trunk[-1]).tensor)
        assert torch.equal(pyramid[2].tensor, expected.tensor)


def test_a_level_of_several_stages_is_mixed_by_one_gate() -> None:
    model, one = build(PLE, shared=1, levels=[3]), build(CGC, shared=1)
    one.load_state_dict(model.state_dict())
    assert len(model.levels) == 1 and len(model.common_gates) == 0
    mine, theirs = model(image()), one(image())
    assert all(torch.equal(a.tensor, b.tensor) for task in TASKS for a, b in zip(mine[task], theirs[task], strict=True))
    vector = pooled(mine["a"][0])
    weights = model.gates[0]["a"](vector)
    given = [run(expert, mine["a"][0]) for expert in (model.encoder.stages[1:], model.own["a"][0])]
    for level, parts in zip(mine["a"][1:], zip(*given, strict=True), strict=True):
        assert torch.equal(level.tensor, blend(parts, weights).tensor)


@cases
def test_a_checkpoint_gives_the_same_network(kind: type[Architecture], options: dict[str, Any]) -> None:
    model = build(kind, **options)
    model.train()(image())  # leaves activations behind, which must be no state and survive copies
    torch.save(model.state_dict(), file := io.BytesIO())
    other = build(kind, **options)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(model)):
        for task, pyramid in twin(image()).items():
            expected = model(image())[task]
            assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(pyramid, expected, strict=True))


@cases
def test_padding_changes_nothing_and_tokens_are_mixed(kind: type[Architecture], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Architecture = kind(Words(), TASKS, **options).double()  # type: ignore[call-arg]
    text = torch.tensor([[1, 2, 3], [4, 5, 6]])
    short, long = model(Features(text)), model(Features(torch.cat([text, torch.zeros(2, 4, dtype=torch.int64)], 1)))
    for task in TASKS:
        for mine, theirs in zip(short[task], long[task], strict=True):
            assert mine.token is not None and theirs.token is not None and theirs.valid is not None
            torch.testing.assert_close(theirs.tensor[..., :3], mine.tensor)
            torch.testing.assert_close(pooled(theirs), pooled(mine))
            assert not theirs.tensor[..., 3:].any() and theirs.valid.sum() == 6
    owners = model.owners()
    found = torch.autograd.grad(total(short["b"]), list(owners), allow_unused=True)
    assert [gradient is not None for gradient in found] == ["b" in users for users in owners.values()]


def test_routers_do_not_round_under_autocast() -> None:
    torch.manual_seed(0)
    for gate in (Gate(8, 3), Selectors(8, 3, 2, 1.0)):
        level = Features(torch.rand(2, 8, 4, 4))
        with torch.autocast("cpu", torch.bfloat16):
            weights = gate(pooled(level))
        assert weights.dtype == torch.float32 and torch.equal(weights, gate(pooled(level)))


@pytest.mark.parametrize("kind", [MMoE, PLE, DSelectK])
def test_they_can_be_exported(kind: type[Architecture]) -> None:
    model = build(kind).eval()

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, tensor: Tensor) -> list[Tensor]:
            return [pyramid[-1].tensor for pyramid in self.inner(Features(tensor)).values()]

    program = torch.export.export(Last(), (image().tensor,))
    for mine, theirs in zip(program.module()(image().tensor), Last()(image().tensor), strict=True):
        torch.testing.assert_close(mine, theirs)


# --- DSelect-k ------------------------------------------------------------------------------------------------------------


def test_the_smooth_step() -> None:
    x = torch.linspace(-2, 2, 81, dtype=torch.float64)
    for width in (0.5, 1.0, 3.0):
        y = smooth_step(x, width)
        inside = x.abs() <= width / 2
        torch.testing.assert_close(y[inside], (-2 / width**3 * x**3 + 1.5 / width * x + 0.5)[inside])
        assert bool((y[x < -width / 2] == 0).all()) and bool((y[x > width / 2] == 1).all())


def choose(gate: Selectors, numbers: Sequence[int], shares: Sequence[float]) -> None:
    bits = gate.codes.shape[1]
    with torch.no_grad():
        gate.bits.bias.copy_(torch.tensor([1.0 if number >> bit & 1 else -1.0 for number in numbers for bit in range(bits)]))
        gate.shares.bias.copy_(torch.tensor(shares).log())


def test_selectors_that_have_chosen_give_exact_zeros() -> None:
    gate = Selectors(None, experts=5, selected=2, gamma=1.0)
    choose(gate, [4, 1], [0.25, 0.75])
    assert gate(None)[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(gate(None), torch.tensor([0, 0.75, 0, 0, 0.25]))
    assert not torch.stack(gate.measures()).any()
    choose(gate, [4, 7], [0.25, 0.75])  # nobody has number 7
    assert float(gate(None).detach().sum()) == pytest.approx(0.25)
    assert gate.measures()[1] > 1000


def test_the_entropy_in_closed_form() -> None:
    gate = Selectors(None, experts=3, selected=2, gamma=1.0)
    nn.init.zeros_(gate.bits.bias)
    entropy, missing = gate.measures()  # four numbers with 1/4 each, of which one is nobody's
    assert float(entropy.detach()) == pytest.approx(2 * 0.75 * math.log(4))
    assert float(missing.detach()) == pytest.approx(2 * (4 / 3 - 1))


def train(steps: int, **options: Any) -> Any:
    model = build(DSelectK, ["a", "b"], widths=(4, 6), **options)
    heads = nn.ModuleList(nn.Linear(6, 1, dtype=torch.float64) for _ in range(2))
    optimizer = torch.optim.Adam([*model.parameters(), *heads.parameters()], 0.02)
    source = image(8)
    targets = [source.tensor.mean((1, 2, 3)), source.tensor[:, 0, :4].mean((1, 2))]
    for _ in range(steps):
        pyramids = model(source)
        losses = [
            (head(pyramids[task][-1].tensor.mean((2, 3))).squeeze(1) - target).square().mean()
            for task, head, target in zip(["a", "b"], heads, targets, strict=True)
        ]
        optimizer.zero_grad()
        torch.stack([*losses, *model.penalties().values()]).sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(("static", "steps"), [(True, 60), (False, 5)])
def test_entropy_falls_as_its_coefficient_rises(static: bool, steps: int) -> None:
    entropies = []
    for coefficient in (0.0, 0.01, 0.5):
        model = train(steps, entropy=coefficient, static=static, experts=3)
        model(image(8))
        entropies.append(float(sum(gate.measures()[0].detach() for gate in model.gates.values())))
    assert entropies[0] > entropies[1] > 2 * entropies[2]


@pytest.mark.parametrize("static", [True, False])
def test_at_convergence_there_are_exact_zeros(static: bool) -> None:
    model = train(60, entropy=1.0, static=static, experts=3)
    model.watch(True)
    model(image(8))
    values = model.tables()["gates"].values
    assert bool(((values == 0).sum(1) >= 1).all()), "at most 2 of 3 experts have a weight"
    torch.testing.assert_close(values.sum(1), torch.ones(2, dtype=torch.float64))
    assert not torch.stack([value for gate in model.gates.values() for value in gate.measures()]).any()


def test_penalties_are_of_the_last_training_batch_and_reach_gates_and_trunk() -> None:
    model = build(DSelectK, experts=3, entropy=0.5)
    assert {name: float(value) for name, value in model.penalties().items()} == {"entropy": 0, "unreachable": 0}
    model(image())
    found = model.penalties()
    model.eval()(image(5))
    assert all(torch.equal(value, model.penalties()[name]) for name, value in found.items())
    model.train()
    halves = []
    for rows in (slice(0, 1), slice(1, 2)):
        model(Features(image(2).tensor[rows]))
        halves.append(model.penalties()["entropy"])
    model(image(2))
    torch.testing.assert_close(model.penalties()["entropy"], torch.stack(halves).mean())
    gradients = torch.autograd.grad(sum(model.penalties().values()), list(model.parameters()), allow_unused=True)
    reached = {name for (name, _), g in zip(model.named_parameters(), gradients, strict=True) if g is not None and g.any()}
    assert {name.partition(".")[2] for name in reached if name.startswith("gates.a")} == {"a.bits.weight", "a.bits.bias"}
    assert {name for name in reached if not name.startswith("gates")} == {
        "encoder.stages.0.body.conv.weight", "encoder.stages.0.body.conv.bias"}  # fmt: skip
    assert "unreachable" not in build(DSelectK, experts=4).penalties()


def penalties_logged(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"].startswith("penalty/")]


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["Equal", "PCGrad"])
def test_two_processes_equal_one(tmp_path: Path, weighting: str) -> None:
    args = ["--model.architecture=DSelectK", "--model.architecture.init_args={experts: 3, entropy: 1.0}",
            f"--model.weighting={weighting}", "--data.init_args.rows=48"]  # fmt: skip
    one = run_distributed(tmp_path / "one", 8, *args)
    two = run_distributed(tmp_path / "two", 4, *args, "--trainer.devices=2", "--trainer.strategy=ddp")
    mine, theirs = (torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for path in (one, two))
    for key, value in mine.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            assert float((value - theirs[key]).abs().max()) < 1e-9, key
    assert penalties_logged(one) == pytest.approx(penalties_logged(two), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MMoE, {"experts": 0}, r"init_args\.experts is 0, expected 1 or more"),
        (MMoE, {"shared": 3}, r"init_args\.shared is 3, expected 0 to 2: the encoder has 3 stages"),
        (MMoE, {"shared": -1}, r"init_args\.shared is -1"),
        (CGC, {"shared_experts": 0}, r"init_args\.shared_experts is 0"),
        (CGC, {"shared": 3}, r"init_args\.shared is 3.*CGC's experts"),
        (PLE, {"own_experts": 0}, r"init_args\.own_experts is 0"),
        (PLE, {"levels": []}, r"init_args\.levels is \[\], expected ascending numbers of stages from 2 on"),
        (PLE, {"levels": [1, 3]}, r"init_args\.levels is \[1, 3\].*from 2 on \(shared is 1\)"),
        (PLE, {"levels": [3, 2]}, r"init_args\.levels is \[3, 2\]"),
        (PLE, {"levels": [2]}, r"init_args\.levels is \[2\].*end with 3"),
        (PLE, {"levels": [2, 4]}, r"init_args\.levels is \[2, 4\]"),
        (DSelectK, {"experts": 2, "selected": 3}, r"init_args\.selected is 3, expected 1 to 2: there are 2 experts"),
        (DSelectK, {"selected": 0}, r"init_args\.selected is 0"),
        (DSelectK, {"gamma": 0.0}, r"init_args\.gamma is 0\.0, expected a number > 0"),
        (DSelectK, {"entropy": float("nan")}, r"init_args\.entropy is nan"),
        (DSelectK, {"shared": 0}, r"init_args\.static is false and shared is 0"),
    ],
)
def test_bad_input_names_the_key(kind: type[Architecture], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(kind, **options)
