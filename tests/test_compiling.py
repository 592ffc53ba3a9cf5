"""torch.compile and channels_last: the same numbers, the same checkpoints, and no end of compiling."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from mtl_lightning import export, load
from mtl_lightning.architectures import HardSharing
from mtl_lightning.compiling import CompileOptions, check_compiler, compile_parts
from mtl_lightning.encoders import BagOfWords
from mtl_lightning.errors import ConfigError
from mtl_lightning.main import main
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Classification
from tests.half import Half
from tests.methods import Run

ROOT = Path(__file__).parents[1]
CONF = ROOT / "tests" / "conf" / "tiny.yaml"
TRACED = "eager"
"""The backend that traces as the default does, and makes no machine code of it, which would take minutes."""


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """How many pieces were compiled so far."""
    return int(counters["stats"]["unique_graphs"])


def compiled_as_plain(name: str, backend: str, **options: str) -> None:
    plain, compiled = Run(name, **options), Run(name, **options)
    compile_parts(compiled.model, CompileOptions(backend=backend))
    plain.go(3), compiled.go(3)
    assert graphs() > 0
    theirs = compiled.state()
    for key, value in plain.state().items():
        assert torch.allclose(value, theirs[key], rtol=1e-6, atol=1e-9, equal_nan=True), key
    once = graphs()
    compiled.go(4)
    assert graphs() == once, "more was compiled for batches of the same size"
    assert not counters["graph_break"] and not counters["unimplemented"]


@pytest.mark.parametrize(("name", "backend"), [("NashMTL", "aot_eager"), pytest.param("FAMO", TRACED, marks=pytest.mark.slow)])
def test_a_compiled_network_gives_the_same(name: str, backend: str) -> None:
    compiled_as_plain(name, backend)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NashMTL", "FAMO", "UW", "MoDo", "GradVac", "NTKMTL"])
def test_machine_code_gives_the_same(name: str) -> None:
    compiled_as_plain(name, "inductor")


@pytest.mark.slow
def test_machine_code_at_features_and_in_half_precision() -> None:
    compiled_as_plain("NashMTL", "inductor", gradients="features")
    plain, compiled = Half("NashMTL", torch.bfloat16), Half("NashMTL", torch.bfloat16, channels_last=True)
    compile_parts(compiled.model, CompileOptions())
    assert torch.allclose(plain.go(6).losses(), compiled.go(6).losses(), rtol=0.05)


def test_sizes_are_compiled_for_once() -> None:
    """And all parts are compiled: by default torch gives up after eight pieces, of all modules together."""
    run = Half("Equal", None)
    compile_parts(run.model, CompileOptions(backend=TRACED))
    seen = []
    with torch.no_grad():
        for rows, side in ((8, 16), (8, 16), (7, 16), (6, 24), (5, 18), (3, 20), (9, 32)):
            run.model({"image": torch.rand(rows, 3, side, side)})
            seen.append(graphs())
    assert seen[1] == seen[0] and len(set(seen[3:])) == 1 and seen[-1] > 8
    assert not counters["unimplemented"]


def broken(graph: object, inputs: object) -> None:
    """A backend on a machine that lacks something."""
    raise RuntimeError("no compiler is here")


def test_a_machine_that_cannot_compile() -> None:
    cpu = torch.device("cpu")
    torch._dynamo.register_backend(broken)
    with pytest.raises(ConfigError, match=r"model\.compile\.backend is 'nope', expected one of .*inductor"):
        check_compiler(CompileOptions(backend="nope"), cpu)
    with pytest.raises(
        ConfigError, match=r"model\.compile: torch\.compile cannot compile here .*no compiler is here.*C\+\+ compiler"
    ):
        check_compiler(CompileOptions(backend="broken"), cpu)


@pytest.mark.slow
def test_a_machine_without_a_compiler(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mtl_lightning", "fit", "--config", str(CONF), "--runs", str(tmp_path), "--model.compile={}"]
    around = {**os.environ, "CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=around, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: model.compile: torch.compile cannot compile here (InvalidCxxCompiler" in done.stderr
    assert not (tmp_path / "tiny").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
def test_a_run_goes_on_with_and_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compiled, in channels_last and bf16, with a stage that thaws; then as it is."""
    basis = ["fit", "--config", str(CONF), "--runs", str(tmp_path), "--model.weighting=UPGrad", "--model.freeze.stages=1",
             "--model.freeze.epochs=1", "--trainer.enable_model_summary=false"]  # fmt: skip
    fast = [f"--model.compile.backend={TRACED}", "--model.channels_last=true", "--trainer.precision=bf16-mixed"]
    main([*basis, *fast, "--trainer.max_epochs=2"])
    first = torch.load(tmp_path / "tiny/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    once = graphs()
    assert once > 0 and not counters["unimplemented"]
    assert not [key for key in first if "_orig_mod" in key]
    model = load(tmp_path / "tiny")
    assert model(torch.rand(2, 3, 16, 16))["color"].shape == (2, 3)
    assert max(export(tmp_path / "tiny", tmp_path / "tiny.pt2").differences.values()) < 1e-5
    compiled = graphs()
    main([*basis, "--ckpt_path=last", "--trainer.max_epochs=3"])
    last = torch.load(tmp_path / "tiny/checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 2 and first.keys() == last["state_dict"].keys()
    assert graphs() == compiled
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*basis, "--model.compile.backend=nope"])
    assert "error: model.compile.backend is 'nope', expected one of" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_was_not_compiled_goes_on_compiled(tmp_path: Path) -> None:
    basis = ["fit", "--config", str(CONF), "--runs", str(tmp_path), "--model.weighting=FAMO", "--trainer.max_epochs=4"]
    main([*basis, "--name=plain"])
    main([*basis, "--name=both", "--trainer.max_epochs=2"])
    main([*basis, "--name=both", "--ckpt_path=last", "--model.compile={}"])
    ends = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("plain", "both")]
    for key, value in ends[0].items():
        if key.startswith("model."):
            assert torch.allclose(value.double(), ends[1][key].double(), rtol=1e-3, atol=1e-4), key


def test_channels_last_is_for_pictures() -> None:
    run = Half("Equal", None, channels_last=True)
    weights = [parameter for parameter in run.model.parameters() if parameter.ndim == 4 and min(parameter.shape) > 1]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    features = run.model.features({"image": torch.rand(2, 3, 8, 8)})["color"]
    assert all(level.tensor.is_contiguous(memory_format=torch.channels_last) for level in features)
    task = Classification(classes=["a", "b"])
    with pytest.raises(ConfigError, match=r"model\.channels_last is for pictures, and the encoder BagOfWords reads none"):
        MultiTaskModel({"a": task}, HardSharing(BagOfWords(vocabulary=9), ["a"]), channels_last=True)
