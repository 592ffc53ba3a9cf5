"""Penalties on weights: values and gradients in closed form, which weights, whole runs, processes, errors."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtl_lightning.architectures import HardSharing
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError
from mtl_lightning.main import main
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.penalties import Penalty, WeightPenalty, choose_penalties, penalties_of
from mtl_lightning.tasks import Classification, SemanticSegmentation
from tests.test_distributed import run as run_distributed

CONF = Path(__file__).parent / "conf" / "tiny.yaml"


class Entangled(HardSharing):
    """An architecture with a penalty of its own."""

    def __init__(self, encoder: Encoder, tasks: Sequence[str]) -> None:
        super().__init__(encoder, tasks)
        self.extra = nn.Parameter(torch.tensor(2.0))

    def penalties(self) -> dict[str, Tensor]:
        return {"entropy": self.extra.square()}


def network() -> MultiTaskModel:
    torch.manual_seed(0)
    tasks = {"color": Classification(["a", "b"]), "mask": SemanticSegmentation(["no", "yes"])}
    return MultiTaskModel(tasks, Entangled(SmallCNN([4, 4]), list(tasks)))


def test_values_and_gradients_by_hand() -> None:
    model = network()
    weight = model.heads["color"].linear.weight
    penalty = WeightPenalty(l1=0.5, l2=0.25, part="heads.color")
    value = penalty(model)
    torch.testing.assert_close(value, 0.5 * weight.abs().sum() + 0.25 * weight.square().sum())
    value.backward()
    torch.testing.assert_close(weight.grad, 0.5 * weight.detach().sign() + 0.5 * weight.detach())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["heads.color.linear.weight"]


@pytest.mark.parametrize(
    ("part", "prefixes"),
    [
        ("all", [""]),
        ("encoder", ["architecture."]),
        ("heads", ["heads."]),
        ("heads.mask", ["heads.mask."]),
        ("architecture.encoder.stages.1", ["architecture.encoder.stages.1."]),
    ],
)
@pytest.mark.parametrize("biases", [False, True])
def test_parts(part: str, prefixes: list[str], biases: bool) -> None:
    model = network()
    WeightPenalty(l2=1.0, part=part, biases=biases)(model).backward()
    for name, parameter in model.named_parameters():
        inside = any(name.startswith(prefix) for prefix in prefixes) and (biases or parameter.ndim > 1)
        assert (parameter.grad is not None) == inside, name


def test_half_precision_does_not_round_it() -> None:
    model, penalty = network(), WeightPenalty(l1=1.0, l2=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(penalty(model), network_value := penalty(model)) and network_value.dtype == torch.float32
    assert torch.equal(network_value, penalty(model))


def test_unknown_parts_are_errors_that_list_the_parts() -> None:
    model = network()
    with pytest.raises(ConfigError, match=r"no part 'heads\.depth'.*all, encoder, heads, heads\.color, heads\.mask, and.*stages"):
        choose_penalties([WeightPenalty(l1=1.0, part="heads.depth")], model, ["color", "mask"])
    assert choose_penalties([WeightPenalty(l1=1.0, part="heads.depth.linear")], model, ["color", "depth", "mask"]) == []
    assert len(choose_penalties([WeightPenalty(l1=1.0)], model, ["color", "depth", "mask"])) == 1
    with pytest.raises(ConfigError, match="not all different"):
        choose_penalties([WeightPenalty(l1=1.0), WeightPenalty(l2=1.0)], model, [])
    with pytest.raises(ConfigError, match="no weights of more than one dimension"):
        choose_penalties([WeightPenalty(l1=1.0, part="architecture.encoder.stages.0.body.norm")], model, [])
    with pytest.raises(ConfigError, match="architecture has a penalty 'entropy', too"):
        penalties_of([WeightPenalty(l1=1.0, name="entropy")], model)
    for factors in ({}, {"l1": -1.0}, {"l2": float("nan")}):
        with pytest.raises(ConfigError, match="l1 is"):
            WeightPenalty(**factors)


def test_penalties_of_others_must_be_one_finite_number() -> None:
    class Odd(Penalty):
        def __init__(self, value: Tensor) -> None:
            super().__init__(None, "all")
            self.value = value

        def __call__(self, model: MultiTaskModel) -> Tensor:
            return self.value

    for value in (torch.tensor(float("inf")), torch.ones(2)):
        with pytest.raises(ConfigError, match="expected one finite number"):
            choose_penalties([Odd(value)], network(), [])


# --- whole runs -----------------------------------------------------------------------------------------------------------


def call(runs: Path, *args: str) -> Path:
    main(["fit", "--config", str(CONF), "--runs", str(runs), "--trainer.log_every_n_steps=1",
          "--trainer.max_epochs=1", *args])  # fmt: skip
    return next(runs.iterdir())


def values(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == name]


def weights(folder: Path) -> dict[str, Tensor]:
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}


def listed(**init: object) -> str:
    arguments = ", ".join(f"{key}: {value}" for key, value in init.items())
    return f"--model.penalties=[{{class_path: WeightPenalty, init_args: {{{arguments}}}}}]"


def test_squares_are_the_weight_decay_of_sgd(tmp_path: Path) -> None:
    sgd = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=0.05", "--trainer.precision=64-true")
    labelled = "--data.init_args.hidden={color: 0, level: 0, mask: 0}"  # a resting head has neither
    decayed = call(tmp_path / "decay", *sgd, labelled, "--model.optimizer.init_args.weight_decay=0.02")
    penalised = call(tmp_path / "penalty", *sgd, labelled, listed(l2=0.01, biases="true"))
    assert values(decayed, "train/color/loss") == pytest.approx(values(penalised, "train/color/loss"), rel=1e-6)
    mine, theirs = weights(decayed), weights(penalised)
    assert all(torch.allclose(value, theirs[key], atol=1e-9) for key, value in mine.items())
    logged = values(penalised, "penalty/all")
    assert len(logged) == len(values(penalised, "weight/color")) and logged[-1] > 0
    assert values(decayed, "penalty/all") == []


def test_a_penalised_head_shrinks_alone_and_losses_do_not_contain_it(tmp_path: Path) -> None:
    plain = call(tmp_path / "plain")
    strong = call(tmp_path / "strong", listed(l1=10, part="heads.color", name="sparse"))
    assert values(strong, "penalty/sparse")[0] > 1
    key = "model.heads.color.linear.weight"
    assert weights(strong)[key].abs().sum() < 0.8 * weights(plain)[key].abs().sum()
    # The first step's losses are of the same network.
    for task in ("color", "level", "mask"):
        assert values(plain, f"step/{task}/loss")[0] == values(strong, f"step/{task}/loss")[0]
        assert values(plain, f"weight/{task}") == values(strong, f"weight/{task}")
    assert values(strong, "val/color/loss")[0] < values(strong, "penalty/sparse")[0]


def test_with_only_the_penalties_of_other_heads_are_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = call(tmp_path, listed(l1=0.1, part="heads.color"), "--model.only=[mask]")
    assert values(folder, "penalty/heads.color") == []
    with pytest.raises(SystemExit) as caught:
        call(tmp_path / "other", listed(l1=0.1, part="heads.colour"))
    assert caught.value.code == 1
    assert "no part 'heads.colour'; it has all, encoder, heads, heads.color, heads.level" in capsys.readouterr().err
    assert not (tmp_path / "other" / "tiny").exists()


def test_an_architectures_own_penalty_is_logged(tmp_path: Path) -> None:
    folder = call(tmp_path, "--model.architecture=tests.test_penalties.Entangled")
    logged = values(folder, "penalty/entropy")
    assert logged[0] == 4 and logged[-1] < logged[0]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    penalty = listed(l1=0.01, l2=0.02)
    one = run_distributed(tmp_path / "one", 8, penalty)
    two = run_distributed(tmp_path / "two", 4, penalty, "--trainer.devices=2", "--trainer.strategy=ddp")
    mine, theirs = weights(one), weights(two)
    assert all(float((value - theirs[key]).abs().max()) < 1e-9 for key, value in mine.items())
    assert values(one, "penalty/all") == pytest.approx(values(two, "penalty/all"), rel=1e-5)
