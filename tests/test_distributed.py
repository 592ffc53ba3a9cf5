"""Several processes on parts of each batch give what one process gives on the whole."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_lightning.main import main
from tests.many import on_processes
from tests.test_bad_numbers import rows_of

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
EXACT = [
    "--model.encoder.init_args.norm=false",
    "--model.tasks.mask.init_args.head=UNet",
    "--model.tasks.mask.init_args.head.init_args.norm=none",
    "--model.optimizer=torch.optim.SGD",
    "--model.optimizer.init_args.lr=0.05",
    "--trainer.precision=64-true",
    "--trainer.log_every_n_steps=1",
    "--data.init_args.rows=45",  # the last batch is uneven
    "--data.init_args.hidden={color: 0.8, level: 0.3, mask: 0.9}",  # batches and ranks without a label
]


def run(runs: Path, batch: int, *args: str) -> Path:
    command = [sys.executable, "-m", "mtl_lightning", "fit", "--config", str(CONF), "--runs", str(runs), *EXACT]
    command += [f"--data.init_args.batch_size={batch}", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in runs.iterdir()] == ["tiny"]
    return runs / "tiny"


def numbers(folder: Path) -> dict[tuple[str, str], float]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert len({(step, name) for step, _, name, _ in rows}) == len(rows)
    return {(step, name): float(value) for step, _, name, value in rows}


LOPSIDED = [
    "--data=tests.lopsided.LopsidedDataModule",
    "--data.init_args.num_workers=0",
    "--data.init_args.rows=93",  # 12 batches of 8; the last one has 5 rows
    "--data.init_args.eval_rows=21",
    "--data.init_args.hidden={color: 0.8, level: 0.3, mask: 0.9}",
    "--trainer.callbacks+=tests.watch.SameEverywhere",
]
CASES = {
    "losses, thaw": ["--model.weighting=UW", "--model.freeze={stages: 1, epochs: 1}"],
    "gradients, accumulate": ["--model.weighting=NashMTL", "--trainer.gradient_clip_val=0.5",
                              "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=4"],
    # In epoch 0 one micro-batch before the processes' sum, and one with which it is taken, of one process.
    "losses, accumulate, bad": ["--model.weighting=UW", "--trainer.accumulate_grad_batches=2",
                                "--data=tests.spoilt.SpoiltDataModule", "--data.init_args.seed=0",
                                rows_of(93, {1: "gradient", 3 * 8 + 2: "gradient", 8 * 8: "image"}),
                                "--model.tasks.level=tests.spoilt.Rooted"],
    "features, thaw": ["--model.weighting=IMTL", "--model.engine.gradients=features", "--model.engine.update_every=2",
                       "--model.freeze={stages: 1, epochs: 1}"],
}  # fmt: skip
MORE = {
    "RLW": ["--model.weighting=RLW"],
    "DWA": ["--model.weighting=DWA", "--trainer.max_epochs=4"],
    "FAMO": ["--model.weighting=FAMO", "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=4"],
    # A part of an uneven batch is not the same rows on any number of processes.
    "FAMO, a part": ["--model.weighting=FAMO", "--model.weighting.init_args.fraction=0.5", "--data.init_args.rows=96"],
    "MoDo": ["--model.weighting=MoDo", "--trainer.accumulate_grad_batches=2"],
    "PCGrad, thaw": ["--model.weighting=PCGrad", "--model.freeze={stages: 1, epochs: 1}", "--trainer.accumulate_grad_batches=2",
                     "--trainer.max_epochs=4"],
    "UPGrad, features": ["--model.weighting=UPGrad", "--model.engine.gradients=features", "--trainer.accumulate_grad_batches=2",
                         "--trainer.max_epochs=4"],
    "DB-MTL": ["--model.weighting=DBMTL"],
    "GradVac": ["--model.weighting=GradVac"],
    "unused": ["--model.weighting=UPGrad", "--trainer.strategy=ddp_find_unused_parameters_true"],
    "unused, features": ["--model.weighting=UPGrad", "--model.engine.gradients=features",
                         "--trainer.strategy=ddp_find_unused_parameters_true"],
    "early stop": ["--model.weighting=Equal", "--trainer.max_epochs=9",
                   "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.init_args.monitor=val/loss",
                   "--trainer.callbacks.init_args.patience=1", "--trainer.callbacks.init_args.min_delta=10"],
}  # fmt: skip


def arguments(runs: Path, name: str, processes: int, *more: str) -> list[str]:
    """Of a fit in float64 on batches of 8 rows over all processes."""
    return ["fit", "--config", str(CONF), "--runs", str(runs), f"--name={name}", *EXACT, *LOPSIDED,
            f"--data.init_args.batch_size={8 // processes}", f"--trainer.devices={processes}",
            f"--trainer.strategy={'ddp' if processes > 1 else 'auto'}", *more]  # fmt: skip


def alone(*args: str) -> None:
    """The same with the trainer's own strategy, in this process."""
    main([arg for arg in args if not arg.startswith("--trainer.strategy=ddp")])


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
    return found


def apart(one: Path, other: Path, name: str = "last") -> float:
    """The largest difference between the states of two runs."""
    mine, theirs = (checkpoint(folder, name)["state_dict"] for folder in (one, other))
    assert mine.keys() == theirs.keys()
    pairs = [(value, theirs[key]) for key, value in mine.items() if isinstance(value, Tensor) and value.is_floating_point()]
    return max(float((first - second).abs().nan_to_num().max()) for first, second in pairs if first.numel())


def assert_equal(one: Path, other: Path, relative: float = 1e-9) -> None:
    """Weights and state, best epoch, every number in the table, and the results that are reported."""
    assert apart(one, other) < 1e-9
    assert apart(one, other, "best") < 1e-9
    first, second = numbers(one), numbers(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key] == pytest.approx(value, rel=relative, abs=relative, nan_ok=True), key
    tables = [json.loads((folder / "summary.json").read_text())["val"] for folder in (one, other)]
    for task, found in tables[0]["tasks"].items():
        assert tables[1]["tasks"][task]["labelled_elements"] == found["labelled_elements"]
        assert tables[1]["tasks"][task]["metrics"] == pytest.approx(found["metrics"], rel=1e-6, nan_ok=True)
    assert tables[1]["score"] == pytest.approx(tables[0]["score"], rel=1e-6)


def assert_as_one(folder: Path, processes: int, cases: dict[str, list[str]]) -> None:
    names = {case: f"case-{number}" for number, case in enumerate(cases)}
    said = on_processes(processes, folder, [arguments(folder / "many", names[case], processes, *cases[case]) for case in cases])
    for case, name in names.items():
        code, _, errors = said[0][list(names).index(case)]
        assert code == 0, (case, errors)
        alone(*arguments(folder / "one", name, 1, *cases[case]))
        assert_equal(folder / "one" / name, folder / "many" / name)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    assert_as_one(tmp_path, 2, CASES)
    found = numbers(tmp_path / "one" / "case-0")
    steps = {step for step, name in found if name == "weight/mask"}
    assert len(steps) >= 20
    assert any(found[step, "weight/mask"] == 0 for step in steps), "no batch without a mask: the test shows nothing"
    epochs = {step for step, name in found if name == "val/score"}
    assert len(epochs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_one(processes: int, tmp_path: Path) -> None:
    assert_as_one(tmp_path, processes, MORE | (CASES if processes == 4 else {}))


@pytest.mark.slow
def test_single_precision_differs_by_rounding_alone(tmp_path: Path) -> None:
    single = ["--trainer.precision=32-true", "--model.weighting=UW"]
    on_processes(2, tmp_path, [arguments(tmp_path / "many", "single", 2, *single)])
    alone(*arguments(tmp_path / "one", "single", 1, *single))
    assert 0 < apart(tmp_path / "one/single", tmp_path / "many/single") < 1e-4


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs, stop = tmp_path / "runs", ["--trainer.max_steps=17"]
    dropout = ["--config", str(CONF), "--runs", str(runs), "--data.init_args.batch_size=4", "--trainer.devices=2",
               "--trainer.strategy=ddp", "--model.tasks.color.init_args.head=MLP",
               "--model.tasks.color.init_args.head.init_args.dropout=0.5"]  # fmt: skip
    alone(*arguments(runs, "whole", 1))
    alone(*arguments(runs, "up", 1, *stop))
    pair = [
        arguments(runs, "up", 2, "--ckpt_path=last"),
        arguments(runs, "down", 2, *stop),
        ["fit", *dropout, "--name=random"],
        ["fit", *dropout, "--name=cut", "--trainer.max_steps=7"],
        ["fit", *dropout, "--name=cut", "--ckpt_path=last"],
    ]
    said = on_processes(2, tmp_path, pair)
    assert [code for code, _, _ in said[0] + said[1]] == [0] * 10, said
    alone(*arguments(runs, "down", 1, "--ckpt_path=last"))
    assert "The checkpoint is of 2 processes, and this run has 1 process" in caplog.text
    for name in ("up", "down"):
        assert_equal(runs / "whole", runs / name)
    # As many processes as before: bit for bit, each with dropout of its own.
    whole, cut = (checkpoint(runs / name) for name in ("random", "cut"))
    assert whole["global_step"] == cut["global_step"] == 12
    assert all(
        torch.equal(value, cut["state_dict"][key]) for key, value in whole["state_dict"].items() if isinstance(value, Tensor)
    )
    streams = [[state["torch"] for state in found["mtl_random"]] for found in (whole, cut)]
    assert all(torch.equal(*pair) for pair in zip(*streams, strict=True))
    assert not torch.equal(*streams[0])
