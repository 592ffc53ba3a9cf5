"""What is not finite is named, counted and left out, and nothing else learns anything from it."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mtl_lightning.bad_numbers import BadNumberMeter, BadNumbers, Fault, merged
from mtl_lightning.batch import Batch
from mtl_lightning.data.loader import EpochSampler
from mtl_lightning.data.sieve import bad_target, sieve
from mtl_lightning.errors import ConfigError
from mtl_lightning.main import main
from mtl_lightning.tasks import Classification, Depth, Regression
from tests.methods import Run, at_features, methods

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
BAD = 2
"""The step with something wrong in these short runs."""


class Spoilt(Run):
    """A short training in plain torch in which one task of one step is spoilt, or hidden."""

    def __init__(self, name: str, how: Callable[["Spoilt", Batch], None], **options: Any) -> None:
        super().__init__(name, **options)
        self.how = how
        self.faults: list[Fault] = []
        settle = self.training.settle
        # What the trainer does between backward and the optimizer's step.
        backward = self.training.backward

        def both(loss: Tensor, scaled: bool) -> Any:
            taken = backward(loss, scaled)
            self.faults += settle(scaled)
            return taken

        self.training.backward = both  # type: ignore[method-assign]

    def _batch(self, seed: int) -> Batch:
        batch = super()._batch(seed)
        if seed == BAD:
            self.how(self, batch)
        return batch


def nothing(run: Spoilt, batch: Batch) -> None:
    """Leave it as it is."""


def hidden(run: Spoilt, batch: Batch) -> None:
    """Take the labels of a task away."""
    batch.labelled["level"][:] = False
    batch.targets["level"][:] = 0


def loss(run: Spoilt, batch: Batch) -> None:
    """Its loss overflows though all labels are finite."""
    batch.targets["level"][batch.labelled["level"]] = 3e38
    batch.targets["level"] = batch.targets["level"].double() * 1e200


def gradient(run: Spoilt, batch: Batch) -> None:
    """The slope of the square root at 0 is infinite, and the loss is what it was."""
    head = run.model.heads["level"]
    plain = head.forward

    def broken(*args: Any) -> Tensor:
        head.forward = plain  # type: ignore[method-assign]
        out: Tensor = plain(*args)
        return out + (out * 0).sqrt()

    head.forward = broken  # type: ignore[method-assign]


CASES = [(name, "parameters") for name in methods()] + [(name, "features") for name in ("NashMTL", "PCGrad", "UPGrad", "DBMTL")]


@pytest.mark.parametrize(("name", "where"), [case for case in CASES if case[1] == "parameters" or at_features(case[0])])
def test_a_loss_that_is_no_number_leaves_all_others_as_if_the_task_had_no_label(name: str, where: Any) -> None:
    mine, clean = (Spoilt(name, how, gradients=where).go(BAD + 2) for how in (loss, hidden))
    assert mine.weights == clean.weights
    theirs = clean.state()
    for key, value in mine.state().items():
        assert torch.equal(value, theirs[key]) or torch.allclose(value, theirs[key], rtol=1e-9, atol=1e-12, equal_nan=True), key
    assert {fault.key for fault in mine.faults} == {"loss/level"} and mine.faults[0].ids and not clean.faults


@pytest.mark.parametrize(("name", "where"), [("NashMTL", "parameters"), ("NashMTL", "features"), ("PCGrad", "parameters")])
def test_a_gradient_that_is_no_number_leaves_the_task_out_where_gradients_are_weighed(name: str, where: Any) -> None:
    mine, clean = (Spoilt(name, how, gradients=where).go(BAD + 2) for how in (gradient, hidden))
    theirs = clean.state()
    for key, value in mine.state().items():
        assert torch.allclose(value, theirs[key], rtol=1e-9, atol=1e-12, equal_nan=True), key
    assert [fault.key for fault in mine.faults] == ["gradient/level"]


@pytest.mark.parametrize("where", ["parameters", "features"])
def test_a_gradient_of_a_head_alone_counts_as_well(where: Any) -> None:
    """The features' gradient is finite, that of the head's own weights is not."""
    run = Spoilt("NashMTL", nothing, gradients=where)
    weight = next(run.model.heads["level"].parameters())
    weight.register_hook(lambda found: found * torch.nan if run.step == BAD else found)
    clean = Spoilt("NashMTL", hidden, gradients=where).go(BAD + 2)
    run.go(BAD + 2)
    assert [fault.key for fault in run.faults] == ["gradient/level"]
    for key, value in clean.state().items():
        assert torch.allclose(run.state()[key], value, rtol=1e-9, atol=1e-12, equal_nan=True), key


@pytest.mark.parametrize("name", ["Equal", "UW", "DWA", "FAMO"])
def test_a_gradient_that_is_no_number_costs_the_step_where_losses_are_weighed(name: str) -> None:
    run = Spoilt(name, gradient).go(BAD)
    before = run.state()
    run.go(1)
    after = run.state()
    assert [(fault.key, fault.lost) for fault in run.faults] == [("gradient/level", "the step was not taken")]
    for key, value in before.items():
        assert torch.equal(value, after[key]) or key.endswith("step") or "history" in key, key
    run.go(1)
    assert all(bool(value.isfinite().all()) for key, value in run.state().items() if key.startswith("model."))
    assert any(not torch.equal(value, run.state()[key]) for key, value in after.items() if key.startswith("model."))


@pytest.mark.parametrize("name", ["Equal", "NashMTL"])
def test_a_micro_batch_that_is_bad_does_not_spoil_the_sum(name: str) -> None:
    run, found = Spoilt(name, nothing), []
    for spoil in (False, True, False):
        batch = run._batch(0)
        if spoil and name == "Equal":
            gradient(run, batch)
        elif spoil:
            batch.inputs["image"][:] = 1e308
        run.training.prepare(batch)
        run.training.backward(run.training.objective(batch), False)
        found.append([None if p.grad is None else p.grad.clone() for p in run.model.parameters()])
    assert {fault.what for fault in run.faults} == {"gradient" if name == "Equal" else "loss"}
    for first, second, third in zip(*found, strict=True):
        assert first is None or (torch.equal(first, second) and torch.allclose(third, 2 * first, rtol=1e-9))


def fit(runs: Path, *args: str, name: str = "tiny") -> dict[str, Any]:
    """A run's last checkpoint."""
    main(["fit", "--config", str(CONF), "--runs", str(runs), f"--name={name}", "--data=tests.spoilt.SpoiltDataModule",
          "--data.init_args.num_workers=0", "--data.init_args.batch_size=8", *args])  # fmt: skip
    return checkpoint(runs / name)


def checkpoint(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert all(bool(value.isfinite().all()) for key, value in found["state_dict"].items() if key.startswith("model."))
    return found


def logged(run: Path) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["name"], []).append(float(row["value"]))
    return rows


@pytest.mark.usefixtures("no_pictures")
def test_images_and_labels_are_left_out_named_and_counted(tmp_path: Path) -> None:
    spoil = "{train-5: image, train-6: level, train-7: color, val-3: image, val-4: level}"
    with pytest.warns(UserWarning) as said:
        state = fit(tmp_path, f"--data.init_args.spoil={spoil}", "--data.init_args.rows=200", "--trainer.max_epochs=2",
                    "--model.bad_numbers.in_a_row=50")  # fmt: skip
    found = logged(tmp_path / "tiny")
    assert found["bad/image"][-1] == found["bad/target/level"][-1] == found["bad/target/color"][-1] == 2
    assert found["val/bad/image"] == found["val/bad/target/level"] == [1, 1]
    assert found["val/color/count"][-1] == 20 and found["val/level/count"][-1] == 2 * 19
    text = "\n".join(str(one.message) for one in said)
    assert text.count("sample train-5: input 'image'") == 2 and "sample train-6: the label of task 'level'" in text
    assert text.count("sample val-3") == 1 and "left out" in text
    assert state["state_dict"]["bad._extra_state"]["counts"] == {"image": 2, "target/level": 2, "target/color": 2}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("method", ["UW", pytest.param("NashMTL", marks=pytest.mark.slow)])
def test_the_first_one_ends_the_run_and_a_resumed_one_goes_on_behind_it(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--data.init_args.spoil={train-5: loss}", f"--model.weighting={method}"]
    whole = fit(tmp_path, *args, "--trainer.max_epochs=1", name="whole")
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, *args, "--trainer.max_epochs=1", "--model.bad_numbers.policy=raise")
    error = capsys.readouterr().err
    assert caught.value.code == 1 and "the loss of task 'level'" in error and "train-5" in error and "raise" in error
    stopped = checkpoint(tmp_path / "tiny")
    assert 0 < stopped["global_step"] < whole["global_step"]
    assert logged(tmp_path / "tiny")["bad/loss/level"] == [1]
    resumed = fit(tmp_path, *args, "--trainer.max_epochs=1", "--model.bad_numbers.policy=raise", "--ckpt_path=last")
    for key, value in whole["state_dict"].items():
        if isinstance(value, Tensor):
            assert torch.equal(value, resumed["state_dict"][key]), key


SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in (("UW", "parameters"), ("PCGrad", "parameters"), ("UW", "clip"),
                                                                 ("NashMTL", "features"))]  # fmt: skip


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("method", "where"), [("Equal", "parameters"), ("FAMO", "parameters"), ("NashMTL", "parameters"), *SLOW])
def test_a_whole_run_is_that_in_which_the_task_has_no_label_in_the_bad_batch(tmp_path: Path, method: str, where: str) -> None:
    """With AdamW, whose momentum and decay would move a head by a gradient of 0, and with batch norm."""
    order = [pick.row for pick in EpochSampler(list(range(48)), shuffle=True, seed=0)]  # type: ignore[arg-type]
    more = ["--data.init_args.seed=0", "--trainer.max_epochs=1", f"--model.weighting={method}"]
    more += ["--trainer.gradient_clip_val=1"] if where == "clip" else [f"--model.engine.gradients={where}"]
    states = []
    for name, spoil in (("spoilt", {order[8]: "loss"}), ("clean", dict.fromkeys(order[8:16], "unlabelled"))):
        listing = ", ".join(f"train-{row}: {kind}" for row, kind in spoil.items())
        hidden = "{color: 0.5, mask: 0.6}"
        states.append(
            fit(tmp_path, f"--data.init_args.spoil={{{listing}}}", f"--data.init_args.hidden={hidden}", *more, name=name)
        )
    mine, clean = (flat({"model": state["state_dict"], "optimizer": state["optimizer_states"]}) for state in states)
    assert mine.keys() == clean.keys() and any("exp_avg" in key for key in mine)
    for key, value in mine.items():
        assert torch.equal(value, clean[key]), key
    assert states[0]["state_dict"]["bad._extra_state"]["counts"] == {"loss/level": 1}


def flat(value: Any, before: str = "") -> dict[str, Tensor]:
    """All tensors in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        return {before: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {key: tensor for name, part in pairs for key, tensor in flat(part, f"{before}.{name}").items()}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", ["huge", "gradient"])
def test_three_steps_in_a_row_end_the_run_with_all_saved(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil = ", ".join(f"train-{row}: {kind}" for row in range(48))
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, f"--data.init_args.spoil={{{spoil}}}", "--model.tasks.level=tests.spoilt.Rooted")
    error = capsys.readouterr().err
    assert caught.value.code == 1 and "in 3 steps one after the other" in error and "'level'" in error
    state = checkpoint(tmp_path / "tiny")
    # Nothing was learnt, not even by batch norm, and a run that goes on counts anew.
    assert state["global_step"] == 3 and state["state_dict"]["bad._extra_state"]["in_a_row"] == 0
    means = [value for key, value in state["state_dict"].items() if key.endswith("running_mean")]
    assert means and not any(bool(value.any()) for value in means)


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_scaler_that_finds_no_scale_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil = ", ".join(f"train-{row}: gradient" for row in range(48))
    with pytest.raises(SystemExit):
        fit(tmp_path, f"--data.init_args.spoil={{{spoil}}}", "--model.tasks.level=tests.spoilt.Rooted", "--trainer.max_epochs=9",
            "--trainer.plugins+=tests.fp16.HalfOnCpu")  # fmt: skip
    assert "no loss scale is small enough" in capsys.readouterr().err
    assert checkpoint(tmp_path / "tiny")["global_step"] == 33


@pytest.mark.usefixtures("no_pictures")
def test_a_validation_within_an_epoch_ends_the_run_with_all_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--data.init_args.spoil={val-3: image}", "--trainer.max_epochs=1", "--trainer.val_check_interval=2"]
    with pytest.raises(SystemExit):
        fit(tmp_path, *more, "--model.bad_numbers.policy=raise")
    assert "sample val-3" in capsys.readouterr().err
    assert checkpoint(tmp_path / "tiny")["global_step"] == 2
    assert fit(tmp_path, *more, "--ckpt_path=last")["global_step"] == 6


class Reads(TorchFunctionMode):
    """Counts how often numbers are asked for, which on a GPU waits for all that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(function, "__name__", "") in ("tolist", "item", "cpu", "__bool__", "__int__", "__float__", "numpy")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "most"), [("Equal", 3), ("NashMTL", 3)])
def test_a_steps_losses_are_read_from_the_device_once(name: str, most: int) -> None:
    """Beside them, what was made of them on the host, and the weights of a method from losses."""
    run = Spoilt(name, nothing)
    batch = run._batch(0)
    run.training.prepare(batch)
    with Reads() as reads:
        run.training.objective(batch)
    assert reads.count <= most


def rows_of(first: int, kinds: dict[int, str]) -> str:
    """What is wrong with the rows at these places of the first epoch, with seed 0."""
    order = [pick.row for pick in EpochSampler(list(range(first)), shuffle=True, seed=0)]  # type: ignore[arg-type]
    return "--data.init_args.spoil={" + ", ".join(f"train-{order[place]}: {kind}" for place, kind in kinds.items()) + "}"


@pytest.mark.usefixtures("no_pictures")
def test_a_bad_micro_batch_costs_itself_alone_and_is_in_the_log_of_its_step(tmp_path: Path) -> None:
    """The first and the last of three steps of two; test_distributed has the same on two processes."""
    spoil = rows_of(48, {1: "gradient", 5 * 8 + 3: "gradient"})
    state = fit(tmp_path, spoil, "--data.init_args.seed=0", "--model.tasks.level=tests.spoilt.Rooted", "--trainer.max_epochs=1",
                "--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=1")  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "tiny/metrics.csv").open()))
    assert [(row["step"], float(row["value"])) for row in rows if row["name"] == "bad/gradient/level"] == [
        ("0", 1),
        ("1", 1),
        ("2", 2),
    ]
    # The good ones of the same steps count.
    assert {int(value["step"]) for value in state["optimizer_states"][0]["state"].values()} == {3}


@pytest.mark.slow
@pytest.mark.parametrize("method", [["FAMO", "fraction=0.75"], ["NTKMTL", "blocks=2"]])
def test_rows_keep_their_places_where_a_method_goes_by_them(tmp_path: Path, method: list[str]) -> None:
    """The first rows of each batch, and blocks of rows."""
    from tests.test_distributed import assert_as_one

    spoil = rows_of(96, {9: "image", 32: "image", 47: "image"})
    more = ["--data=tests.spoilt.SpoiltDataModule", spoil, "--data.init_args.rows=96", "--data.init_args.seed=0",
            f"--model.weighting={method[0]}", f"--model.weighting.init_args.{method[1]}"]  # fmt: skip
    assert_as_one(tmp_path, 2, {method[0]: more})


@pytest.mark.slow
def test_a_part_of_a_batch_is_one_on_all_processes(tmp_path: Path) -> None:
    """Without the bad image, 0.9 of one process's rows would be all of them, and of the other's a part."""
    from tests.test_distributed import run

    spoil = ["--data=tests.spoilt.SpoiltDataModule", "--data.init_args.spoil={train-5: image}"]
    run(tmp_path, 5, *spoil, "--data.init_args.rows=40", "--data.init_args.num_workers=0",
        "--model.weighting=FAMO", "--model.weighting.init_args.fraction=0.9",
        "--data.init_args.hidden={}", "--trainer.devices=2", "--trainer.strategy=ddp")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind", "accumulate"),
    [
        *((method, kind, 1) for method in ("UW", "NashMTL") for kind in ("image", "level", "infinite", "gradient")),
        ("UW", "gradient", 2),
        ("NashMTL", "infinite", 2),
    ],
)
def test_two_processes_of_which_one_has_the_bad_sample(tmp_path: Path, kind: str, method: str, accumulate: int) -> None:
    from tests.test_distributed import numbers, run

    more = ["--data=tests.spoilt.SpoiltDataModule", f"--data.init_args.spoil={{train-5: {kind}}}", "--data.init_args.rows=45",
            "--data.init_args.hidden={color: 0.5, level: 0.0, mask: 0.6}", "--data.init_args.num_workers=0",
            "--model.tasks.level=tests.spoilt.Rooted", f"--model.weighting={method}",
            f"--trainer.accumulate_grad_batches={accumulate}"]  # fmt: skip
    one = run(tmp_path / "one", 8, *more)
    two = run(tmp_path / "two", 4, *more, "--trainer.devices=2", "--trainer.strategy=ddp")
    mine, theirs = checkpoint(one)["state_dict"], checkpoint(two)["state_dict"]
    for key, value in mine.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            assert float((value - theirs[key]).abs().max()) < 1e-9, key
    assert mine["bad._extra_state"] == theirs["bad._extra_state"] and mine["bad._extra_state"]["counts"]
    assert numbers(one).keys() == numbers(two).keys()


def test_what_is_a_bad_label() -> None:
    nan, inf = torch.nan, torch.inf
    level, color, depth = Regression(names=["a", "b"]).target, Classification(classes=["a", "b"]).target, Depth().target
    assert [bad_target(level, torch.tensor(value)) for value in ([1, 2], [1.0, nan], [nan, nan], [1.0, inf])] == [0, 0, 1, 1]
    assert [bad_target(color, value) for value in (1, torch.tensor(1), torch.tensor(nan))] == [0, 0, 1]
    assert [bad_target(depth, torch.tensor([[[1.0, value]]])) for value in (nan, inf, -inf)] == [0, 1, 1]
    assert not bad_target(depth, torch.full((1, 2, 2), 3e38))


def test_what_is_left_of_a_batch() -> None:
    level = {"level": Regression(names=["a"]).target}

    def sample(row: int, value: float = 1.0, other: float = 1.0) -> dict[str, Any]:
        picture = torch.full((3, 4, 4), value)
        return {"id": str(row), "image": picture, "near": picture / value * other, "level": torch.ones(1)}

    one = {"image": ["level"]}
    left, found = sieve([sample(0), sample(1, torch.nan), sample(2)], level, one, [False] * 3)
    # The others keep their places, and another one without labels takes that of the bad one.
    assert [(row["id"], "level" in row) for row in left] == [("0", True), ("2", False), ("2", True)]
    assert [str(*fault.ids) for fault in found] == ["1"]
    # No row at all: zeros; a filler's fault was named elsewhere.
    left, found = sieve([sample(0, torch.nan), sample(1, torch.inf)], level, one, [False, True])
    assert len(left) == 2 and len(found) == 1 and not any(row["image"].any() or "level" in row for row in left)
    # Of two inputs the other one stays, and labels go with the one that is read.
    two: dict[str, list[str]] = {"image": [], "near": ["level"]}
    left, found = sieve([sample(0, other=torch.nan), sample(1)], level, two, [False] * 2)
    assert left[0].keys() == {"id", "image"} and found[0].name == "near" and "level" in left[1]


def test_the_meter() -> None:
    said: list[str] = []
    meter = BadNumberMeter(BadNumbers(in_a_row=2), said.append)
    loss = Fault("loss", "a", ("x",), "left out")
    for step in range(5):
        # Two micro-batches of a step count once.
        assert meter.add([loss], f"step {step}") is None and meter.add([loss], f"step {step}", steps=True) is None
        assert meter.add([], "between", steps=True) is None
    assert meter.record() == {"bad/loss/a": 10} and len(said) == 4
    again = BadNumberMeter(BadNumbers(in_a_row=2), said.append)
    meter.add([loss], "step 9", steps=True)
    again.set_extra_state(meter.get_extra_state())
    error = again.add([loss], "step 10", steps=True)
    assert "step 10" in str(error) and "2 steps" in str(error) and "'a'" in str(error)
    assert merged([loss, loss._replace(ids=("y",)), Fault("image", "image", ("x",))])[0].ids == ("x", "y")
    with pytest.raises(ConfigError, match="in_a_row is 0"):
        BadNumbers(in_a_row=0)
