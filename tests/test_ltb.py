"""Learning to branch: what mixes, what is drawn, when the tree is fixed, and what is kept."""

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from mtl_lightning.architectures import LTB
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features
from mtl_lightning.main import main
from tests import test_distributed, test_resume
from tests.killer import Stopped
from tests.sharing import assert_owners, calls, pictures, small

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
TASKS = ["a", "b", "c"]
# Stage 2's branches choose stage 1's 1, 0, 0, stage 3's choose stage 2's 2, 1, 0, and the tasks stage 3's 0, 0, 1.
CHOICES = [[1, 0, 0], [2, 1, 0], [0, 0, 1]]
ROUTES = {"a": (0, 2, 0), "b": (0, 2, 0), "c": (0, 1, 1)}


def build(norm: bool = False, **options: object) -> LTB:
    return LTB(small(4, 5, 6, norm=norm), TASKS, **options).double()  # type: ignore[arg-type]


def choose(model: LTB, strength: float) -> None:
    with torch.no_grad():
        for rows, chosen in zip(model.logits, CHOICES, strict=True):
            for row, parent in zip(rows, chosen, strict=True):  # type: ignore[arg-type]
                row.copy_(strength * nn.functional.one_hot(torch.tensor(parent), 3))


def outputs(model: LTB, source: Features) -> list[Tensor]:
    return [level.tensor for pyramid in model(source).values() for level in pyramid]


def test_sure_choices_are_the_tree_that_is_fixed() -> None:
    model, source = build(epochs=2), pictures()
    choose(model, 1000.0)
    assert model.set_epoch(0) is None
    soft = outputs(model, source)
    assert calls(model, source, ["a"]) == [3, 3, 3]
    assert model.set_epoch(1) is None
    assert model.revision == 0
    said = model.set_epoch(2)
    assert said == "Epoch 3: the branches are fixed: stage 1 a, b, c; stage 2 a, b | c; stage 3 a, b | c"
    assert model.routes == ROUTES
    assert model.revision == 1
    assert (model.set_epoch(3), model.set_epoch(0), model.revision) == (None, None, 1)
    for one, other in zip(soft, outputs(model, source), strict=True):
        torch.testing.assert_close(one, other)
    assert calls(model, source, None) == [1, 2, 2]
    assert calls(model, source, ["c"]) == [1, 1, 1]
    found = model(source)
    assert found["a"] is found["b"]


def test_mixing_is_a_gumbel_softmax_over_all_parents() -> None:
    model, source = build(epochs=5, branches=[2, 1, 3], temperature=(4.0, 0.25)), pictures()
    assert [len(stages) for stages in model.stages()] == [2, 1, 3]
    model.set_epoch(2)
    assert model.temperature.item() == pytest.approx(1.0)
    with torch.no_grad():
        for row in model.logits.parameters():
            row.copy_(torch.randn_like(row))
    noise = {"first": model.noise[:2], "tasks": model.noise[-9:].view(3, 3)}
    (first,), tasks = list(model.logits[0]), torch.stack(list(model.logits[2]))  # type: ignore[call-overload]
    for training in (True, False):
        model.train(training)
        part = float(training)
        start = model.encoder.start(source)
        one, middle, last = model.stages()
        firsts = [stage(start).tensor for stage in one]
        to_first, to_tasks = (first + part * noise["first"]).softmax(0), (tasks + part * noise["tasks"]).softmax(1)
        mixed = to_first[0] * firsts[0] + to_first[1] * firsts[1]
        second = middle[0](Features(mixed))
        thirds = [stage(second).tensor for stage in last]
        found = model(source)["c"]
        torch.testing.assert_close(found[0].tensor, mixed)
        torch.testing.assert_close(found[1].tensor, second.tensor)
        torch.testing.assert_close(found[2].tensor, sum(to_tasks[2, k] * thirds[k] for k in range(3)))


def test_shares_are_not_rounded_under_autocast() -> None:
    model, source = LTB(small(4, 5, norm=False).float(), TASKS), pictures()
    source.tensor = torch.ones_like(source.tensor).float()
    with torch.no_grad():
        for parameter in model.logits.parameters():
            parameter.copy_(torch.randn(3))
    for copies in model.stages():
        for stage in copies:
            stage.body = nn.Identity()
    with torch.autocast("cpu", torch.bfloat16):
        for pyramid in model.eval()(source).values():
            # Means of ones.
            torch.testing.assert_close(pyramid[0].tensor, pyramid[1].tensor, rtol=1e-6, atol=1e-6)


def test_owners_change_with_the_tree() -> None:
    model, source = build(epochs=1), pictures()
    choose(model, 1.0)
    model.set_epoch(0)
    assert_owners(model, source)
    assert list(model.owners()[row] for row in model.logits[2]) == [{"a"}, {"b"}, {"c"}]  # type: ignore[union-attr, index]
    model.set_epoch(1)
    assert_owners(model, source)
    users = [[set(model.owners()[next(stage.parameters())]) for stage in stages] for stages in model.stages()]
    assert users == [[set("abc"), set(), set()], [set(), {"c"}, {"a", "b"}], [{"a", "b"}, {"c"}, set()]]
    assert not any(model.owners()[row] for row in model.logits.parameters())
    assert_owners(build(branches=[1, 2, 1]), source)
    assert_owners(LTB(small(4, 5), ["a"]).double(), source)


def test_noise_is_new_in_each_step_and_the_same_within_it() -> None:
    model, source = build(), pictures()
    with torch.random.fork_rng():
        model.set_epoch(0)
        one, again = outputs(model, source), outputs(model, source)
    assert all(torch.equal(*pair) for pair in zip(one, again, strict=True))
    noise = model.noise.clone()
    before = torch.get_rng_state()
    other = build()
    other.load_state_dict(model.state_dict())
    for each in (model, other):
        each.set_epoch(0)
    assert torch.equal(torch.get_rng_state(), before), "others' random numbers do not depend on it"
    assert torch.equal(model.noise, other.noise)
    assert not torch.equal(model.noise, noise)
    quiet = outputs(model.eval(), source)
    model.set_epoch(0)
    assert all(torch.equal(*pair) for pair in zip(quiet, outputs(model, source), strict=True))


def test_the_noise_is_gumbel() -> None:
    model = build()
    drawn = []
    for _ in range(400):
        model.set_epoch(0)
        drawn.append(model.noise.clone())
    noise = torch.cat(drawn)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.06)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, rel=0.1)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_checkpoint_goes_on_alike(tmp_path: Path, fixed: bool) -> None:
    model, source = build(norm=True, epochs=3), pictures()
    choose(model, 1.0)
    for epoch in range(4 if fixed else 2):
        model.set_epoch(epoch)
        model(source)
    torch.save(model.eval().state_dict(), tmp_path / "state.pt")
    other = build(norm=True, epochs=3).eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.routes == model.routes == (ROUTES if fixed else None)
    assert (other.revision > 0) or not fixed
    for one, two in zip(outputs(model, source), outputs(other, source), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert all(torch.equal(model.tables()[key].values, other.tables()[key].values) for key in model.tables())


def test_tables_are_probabilities_and_then_the_tree() -> None:
    model = build(epochs=1)
    choose(model, 2.0)
    tables = model.tables()
    assert list(tables) == ["stage 1", "stage 2", "stage 3"]
    assert tables["stage 3"].rows == TASKS
    assert tables["stage 3"].columns == ["stage 3 branch 1", "stage 3 branch 2", "stage 3 branch 3"]
    assert tables["stage 1"].rows == ["stage 2 branch 1", "stage 2 branch 2", "stage 2 branch 3"]
    torch.testing.assert_close(tables["stage 3"].values[2], torch.tensor([0.0, 2.0, 0.0]).double().softmax(0))
    model.set_epoch(1)
    assert [table.values.argmax(1).tolist() for table in model.tables().values()] == CHOICES
    assert all(table.values.sum() == 3 for table in model.tables().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected 1 or more"),
        ({"branches": 0}, "branches is 0, expected one number from 1 on"),
        ({"branches": [1, 2]}, r"branches is \[1, 2\], expected .* one for each of the encoder's 3 stages"),
        ({"branches": [1, 0, 2]}, r"branches is \[1, 0, 2\]"),
        ({"temperature": (0.0, 1.0)}, r"temperature is \[0\.0, 1\.0\], expected two numbers above 0"),
        ({"temperature": (1.0, float("nan"))}, r"temperature is \[1\.0, nan\], expected"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture\.init_args\." + message):
        build(**options)


LEARN = ["--model.architecture=LTB", "--model.architecture.init_args.epochs=1", "--model.architecture_lr=10"]


class Keep(Callback):
    """The architecture's parameters after every batch in which the tree was fixed, by whether a task uses them."""

    seen: ClassVar[list[dict[bool, list[Tensor]]]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        owners = pl_module.model.architecture.owners()
        if pl_module.model.architecture.routes is not None:
            kept: dict[bool, list[Tensor]] = {True: [], False: []}
            for parameter, users in owners.items():
                kept[bool(users)].append(parameter.detach().clone())
            self.seen.append(kept)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["Equal", "PCGrad"])
def test_what_the_tree_leaves_out_stands_still(tmp_path: Path, weighting: str) -> None:
    Keep.seen.clear()
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path), *LEARN, f"--model.weighting={weighting}",
          "--model.optimizer.init_args.weight_decay=0.3", "--trainer.callbacks+=tests.test_ltb.Keep"])  # fmt: skip
    first, last = Keep.seen[0], Keep.seen[-1]
    assert len(Keep.seen) == 6
    assert first[False]
    assert all(torch.equal(*pair) for pair in zip(first[False], last[False], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first[True], last[True], strict=True))


def test_a_run_too_short_for_the_tree_is_warned_of() -> None:
    model = build(epochs=4)
    assert "epochs is 4, and the run ends after trainer.max_epochs 4" in str(model.foresee(4))
    assert model.foresee(5) is None and model.foresee(None) is None
    model.set_epoch(4)
    assert model.foresee(1) is None, "fixed in an earlier run"


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 10], ids=["while it is learnt", "in the fixed tree"])
def test_resumed_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    args = [*LEARN, "--model.weighting=FAMO"]
    test_resume.fit(tmp_path / "one", *args)
    killer = f"--trainer.callbacks+={{class_path: tests.killer.StopAt, init_args: {{step: {stop}}}}}"
    with pytest.raises(Stopped):
        test_resume.fit(tmp_path / "other", *args, killer)
    test_resume.fit(tmp_path / "other", *args, "--ckpt_path=last")
    test_resume.assert_same(tmp_path / "one" / "tiny", tmp_path / "other" / "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["Equal", "PCGrad"])
def test_two_processes_are_one(tmp_path: Path, weighting: str) -> None:
    args = [*LEARN, f"--model.weighting={weighting}", "--trainer.max_epochs=2", "--model.optimizer.init_args.momentum=0.9"]
    one = test_distributed.run(tmp_path / "one", 8, *args)
    two = test_distributed.run(tmp_path / "two", 4, *args, "--trainer.devices=2", "--trainer.strategy=ddp")
    mine, theirs = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (one, two))
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        if re.match(r"model\.", key):
            torch.testing.assert_close(tensor, theirs[key], rtol=1e-9, atol=1e-12, msg=key)
    assert (mine["model.architecture.parents"] >= 0).all()
