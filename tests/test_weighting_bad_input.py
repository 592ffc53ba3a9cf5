"""What goes wrong in choosing or running a weighting method ends in one message that says what to change."""

import csv
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtl_lightning.architectures import HardSharing
from mtl_lightning.features import Features
from mtl_lightning.main import main
from mtl_lightning.tasks import Regression
from mtl_lightning.tasks.base import MaskedLoss

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"


class Separated(HardSharing):
    """One trunk, and behind it features of each task's own."""

    common = False

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        return {name: list(pyramid) for name, pyramid in super().forward(source, tasks).items()}


class NothingShared(HardSharing):
    """Says that no parameter belongs to two tasks."""

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        return dict.fromkeys(self.parameters(), frozenset(self.tasks[:1]))


class Lowered(Regression):
    """A loss that becomes negative."""

    def loss(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> MaskedLoss:
        return {name: term._replace(total=term.total - 9.0 * term.denominator)
                for name, term in super().loss(prediction, target, labelled).items()}  # fmt: skip


def fit(folder: Path, *options: str) -> None:
    main(["fit", "--config", str(CONF), "--runs", str(folder), *options])


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--model.weighting=NashMLT"], 2, ["--model.weighting", "no class 'NashMLT'", "mean NashMTL?"]),
        (["--model.weighting=NashMTL", "--model.weighting.max_nrom=2"], 2, ["model.weighting.max_nrom", "mean max_norm?"]),
        (["--model.weighting=CAGrad", "--model.weighting.d=2"], 2, ["model.weighting.d", "There are: c, rescale"]),
        (["--model.weighting=CAGrad", "--model.weighting.c=-1"], 1, ["model.weighting.init_args.c is -1"]),
        (["--model.engine.gradient=features"], 2, ["--model.engine.gradient:", "mean gradients?"]),
        (["--model.engine.gradients=feature"], 2, ["--model.engine.gradients", "'feature'", "'parameters', 'features'"]),
        (["--model.engine.update_every=0"], 1, ["model.engine.update_every is 0"]),
        (["--model.engine.watch_every=-1"], 1, ["model.engine.watch_every is -1"]),
        (
            ["--model.weighting=NashMTL", "--model.engine.gradients=features",
             "--model.architecture=tests.test_weighting_bad_input.Separated"],
            1,
            ["model.engine.gradients is features", "Separated", "set it to parameters", "HardSharing"],
        ),
        (
            ["--model.weighting=NashMTL", "--model.architecture=tests.test_weighting_bad_input.NothingShared"],
            1,
            ["model.weighting NashMTL", "NothingShared shares none", "weighting from losses"],
        ),
        (["--model.weighting=DBMTL", "--model.engine.gradients=features"], 1, ["DBMTL", "set it to parameters"]),
        (
            ["--model.weighting=FAMO", "--model.weighting.fraction=0.5", "--data.init_args.mixing=MixUp"],
            1,
            ["fraction", "data.init_args.mixing", "fraction to 1"],
        ),
        *(
            (
                [f"--model.weighting={method}", "--model.tasks.level=tests.test_weighting_bad_input.Lowered"],
                1,
                [f"model.weighting {method}", "task 'level' is -", "more than 0"],
            )
            for method in ("GLS", "FAMO", "STCH", "DBMTL", "ScaleInvariant")
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_one_message_says_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, words: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, *options)
    streams = capsys.readouterr()
    assert caught.value.code == code, streams.err
    assert "Traceback" not in streams.err + streams.out
    errors = [line for line in streams.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, streams.err
    assert all(word in errors[0] for word in words), errors[0]


@pytest.mark.parametrize("where", ["parameters", "features"])
def test_a_gradient_method_with_one_task_is_plain_training(tmp_path: Path, where: str) -> None:
    common = ["--model.only=[level]", "--trainer.max_epochs=1"]
    fit(tmp_path, *common, "--name=plain")
    fit(tmp_path, *common, "--name=nash", "--model.weighting=NashMTL", f"--model.engine.gradients={where}")
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for name in ("plain", "nash")
    ]
    plain = {key: value for key, value in states[0].items() if key.startswith("model.")}
    assert plain and all(torch.equal(value, states[1][key]) for key, value in plain.items())
    with (tmp_path / "nash" / "metrics.csv").open(newline="") as file:
        assert {float(row["value"]) for row in csv.DictReader(file) if row["name"] == "weight/level"} == {1.0}


def test_watching_gradients_may_begin_and_end_with_a_resume(tmp_path: Path) -> None:
    base = ["fit", "--config", str(CONF), "--runs", str(tmp_path), "--model.weighting=UW"]
    main([*base, "--trainer.max_epochs=1"])
    main([*base, "--trainer.max_epochs=2", "--model.engine.watch_every=1", "--ckpt_path=last"])
    assert "gradient/norm/color" in (tmp_path / "tiny/metrics.csv").read_text()
    main([*base, "--trainer.max_epochs=3", "--ckpt_path=last"])


@pytest.mark.parametrize(
    "method", [["FAMO", "--model.weighting.min_losses={mask: -1}"], ["AutoLambda", "--model.weighting.primary=[mask]"]]
)
def test_options_may_name_tasks_that_the_run_leaves_out(tmp_path: Path, method: list[str]) -> None:
    words = ["fit", "--config", str(CONF), "--runs", str(tmp_path), "--trainer.max_epochs=1", "--model.only=[color]"]
    main([*words, f"--model.weighting={method[0]}", *method[1:]])


def test_nothing_shared_learns_and_gradients_are_watched(tmp_path: Path) -> None:
    words = ["fit", "--config", str(CONF), "--runs", str(tmp_path), "--trainer.max_epochs=1", "--model.freeze.stages=all"]
    main([*words, "--model.engine.watch_every=1"])
