"""Gradient methods under mixed precision, with clipping, compiled encoders, and on a GPU where there is one."""

from pathlib import Path

import pytest
import torch

from mtl_lightning.main import main
from tests.methods import Run

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
METHODS = ["NashMTL", "UPGrad", "AlignedMTL", "GradDrop", "IMTL", "FAMO"]
ACCELERATORS = ["cpu", pytest.param("gpu", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def fit(runs: Path, *args: str) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """The final state and all logged values by name."""
    main(["fit", "--config", str(CONF), "--runs", str(runs), "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", *args])
    logged: dict[str, list[float]] = {}
    for line in (runs / "tiny/metrics.csv").read_text().splitlines()[1:]:
        _, _, name, value = line.split(",")
        logged.setdefault(name, []).append(float(value))
    return torch.load(runs / "tiny/checkpoints/last.ckpt", weights_only=True)["state_dict"], logged


@pytest.mark.parametrize("accelerator", ACCELERATORS)
@pytest.mark.parametrize("where", ["parameters", "features"])
@pytest.mark.parametrize("method", METHODS)
def test_bfloat16(tmp_path: Path, method: str, where: str, accelerator: str) -> None:
    if where == "features" and method in ("GradDrop", "FAMO"):
        pytest.skip("not at features")
    state, logged = fit(tmp_path, f"--model.weighting={method}", f"--model.engine.gradients={where}",
                        f"--trainer.accelerator={accelerator}", "--trainer.precision=bf16-mixed")  # fmt: skip
    assert all(bool(value.isfinite().all()) for key, value in state.items() if key.startswith("model."))
    assert logged["val/score"][-1] > 0
    assert "gradient/skipped" not in logged


@pytest.mark.parametrize("where", ["parameters", pytest.param("features", marks=pytest.mark.slow)])
def test_half_precision_skips_a_step_that_overflows_and_counts_it(tmp_path: Path, where: str) -> None:
    more = ["--model.weighting=NashMTL", f"--model.engine.gradients={where}"]
    plugin = "--trainer.plugins+=tests.fp16.HalfOnCpu"
    state, logged = fit(tmp_path / "large", *more, plugin, "--trainer.plugins.scale=1e30")
    skipped = int(state["engine.balance.skipped"])
    assert skipped > 0 and logged["gradient/skipped"][-1] == skipped
    assert all(bool(value.isfinite().all()) for key, value in state.items() if key.startswith("model."))
    state, logged = fit(tmp_path / "small", *more, plugin)
    assert "gradient/skipped" not in logged and logged["val/score"][-1] > 0
    # What the method sees is free of the scale: its first weights are those of full precision, but for rounding.
    _, plain = fit(tmp_path / "plain", *more)
    for task in ("color", "level", "mask"):
        assert logged[f"weight/{task}"][0] == pytest.approx(plain[f"weight/{task}"][0], rel=0.05)


def test_clipping_sees_the_step_direction(tmp_path: Path) -> None:
    args = ["--model.weighting=NashMTL", "--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=1"]
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path), *args, "--trainer.max_steps=1",
          "--trainer.gradient_clip_val=0.001", "--data.init_args.seed=0"])  # fmt: skip
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path), *args, "--trainer.max_steps=1", "--name=still",
          "--model.optimizer.init_args.lr=0", "--data.init_args.seed=0"])  # fmt: skip
    moved, start = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("tiny", "still")
    )
    network = [key for key in start if key.startswith("model.") and start[key].is_floating_point() and "running" not in key]
    distance = torch.stack([(moved[key] - start[key]).norm() for key in network]).norm()
    assert float(distance) == pytest.approx(0.001, rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["NashMTL", "UPGrad", "PCGrad", "DBMTL", "GradNorm", "FAMO", "IMTL", "MoDo", "NTKMTL"])
def test_a_gpu_gives_what_a_cpu_gives(name: str) -> None:
    here, there = Run(name).go(4), Run(name, device="cuda").go(4)
    for key, value in here.state().items():
        assert torch.allclose(value, there.state()[key].cpu(), rtol=1e-6, atol=1e-8, equal_nan=True), key


def test_all_tasks_absent_under_a_scaler(tmp_path: Path) -> None:
    hidden = "--data.init_args.hidden={color: 0.95, level: 0.95, mask: 0.95}"
    _, logged = fit(tmp_path, "--model.weighting=NashMTL", "--trainer.plugins+=tests.fp16.HalfOnCpu", hidden,
                    "--data.init_args.batch_size=2")  # fmt: skip
    weights = zip(*(logged[f"weight/{task}"] for task in ("color", "level", "mask")), strict=True)
    assert any(set(step) == {0.0} for step in weights), "no batch without a label: the test shows nothing"
