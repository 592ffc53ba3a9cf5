"""Trained models as files for other programs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mtl_lightning import Predictor, export, exporting, load
from mtl_lightning.architectures import HardSharing
from mtl_lightning.data.prepare import Preparation
from mtl_lightning.encoders import VGG, Encoder, GoogLeNet, ResNet, SmallCNN
from mtl_lightning.errors import ConfigError, ExportError
from mtl_lightning.heads import FCN, MLP, UNet
from mtl_lightning.main import main
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Classification, Depth, MultiLabel, Regression, SemanticSegmentation, SurfaceNormals, Task

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "conf" / "tiny.yaml"
ANY_SIZE = pytest.mark.skipif(
    torch.__version__ < "2.14", reason="max-pooling of an unknown height cannot be exported by torch 2.11"
)


def predictor(encoder: Encoder, size: int | None = 64) -> Predictor:
    """Every kind of task and head on an untrained network."""
    torch.manual_seed(0)
    tasks: dict[str, Task] = {
        "kind": Classification(classes=["a", "b", "c"]),
        "tags": MultiLabel(labels=["x", "y"], head=MLP),
        "age": Regression(names=["age"], mean=40.0, std=12.0),
        "mask": SemanticSegmentation(classes=["no", "yes"], loss="bce", head=FCN),
        "parts": SemanticSegmentation(classes=["u", "v", "w"], head=UNet),
        "depth": Depth(),
        "normals": SurfaceNormals(auxiliary=True),
    }
    tasks["age"].learn([torch.tensor([30.0]), torch.tensor([50.0])])
    model = MultiTaskModel(tasks, HardSharing(encoder, list(tasks)))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.2)  # type: ignore[union-attr]
    return Predictor(model, tasks, Preparation(image_size=size))


def test_all_tasks_but_auxiliary_ones_for_any_batch(tmp_path: Path) -> None:
    model = predictor(SmallCNN([8, 8]))
    done = export(model, tmp_path / "model.pt2")
    program = torch.export.load(done.path).module()
    image = torch.rand(3, 3, 64, 64)
    outputs = program(image)
    assert list(outputs) == list(done.differences) == ["kind", "tags", "age", "mask", "parts", "depth"]
    raw = model.eval()(image)
    for name, value in outputs.items():
        assert torch.allclose(value, model.tasks[name].interpret(raw[name]), atol=1e-5), name
    assert torch.allclose(outputs["kind"].sum(1), torch.ones(3))
    assert torch.allclose(outputs["mask"].sum(1), torch.ones(3, 64, 64)) and outputs["mask"].shape[1] == 2
    assert (outputs["depth"] > 0).all()
    about = json.loads(done.description.read_text())
    assert about["input"]["shape"] == ["batch", 3, 64, 64]
    assert about["outputs"]["parts"]["pixels"] == {"0": "u", "1": "v", "2": "w"}
    assert about["outputs"]["age"]["mean"] == [40.0] and about["outputs"]["age"]["std"] == [12.0]
    assert about["outputs"]["depth"]["unit"] == "m" and "probability" in about["outputs"]["kind"]["output"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]
    # The model that was given is as before.
    assert list(model.tasks) == [*outputs, "normals"]


def test_what_is_asked_for_and_nothing_else(tmp_path: Path) -> None:
    model = predictor(SmallCNN([8, 8]))
    done = export(model, tmp_path / "few.pt2", tasks=["normals", "age"], raw=True, size=(32, 48))
    program = torch.export.load(done.path)
    image = torch.rand(2, 3, 32, 48)
    outputs, raw = program.module()(image), model.eval()(image)
    assert list(outputs) == ["age", "normals"]
    assert all(torch.allclose(outputs[name], raw[name], atol=1e-6) for name in outputs)
    assert not [name for name in program.state_dict if "parts" in name or "kind" in name]
    assert json.loads(done.description.read_text())["outputs"]["age"]["output"] == "raw"


@ANY_SIZE
def test_any_size(tmp_path: Path) -> None:
    model = predictor(SmallCNN([8, 8]), size=None)
    program = torch.export.load(export(model, tmp_path / "any.pt2", tasks=["kind", "parts"]).path).module()
    for size in ((33, 64), (100, 47)):
        image = torch.rand(1, 3, *size)
        raw = model.eval()(image)
        assert torch.allclose(program(image)["parts"], raw["parts"].softmax(1), atol=1e-5)


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = predictor(SmallCNN([8, 8]))
    with pytest.raises(ConfigError, match="--tasks: there is no task colour; the model has kind, tags"):
        export(model, tmp_path / "x.pt2", tasks=["colour"])
    with pytest.raises(ConfigError, match=r"a file of format torch_export ends in .pt2"):
        export(model, tmp_path / "x.onnx")
    (tmp_path / "x.pt2").write_text("mine")
    with pytest.raises(ConfigError, match=r"x.pt2 exists already; move it away, or give another --output"):
        export(model, tmp_path / "x.pt2")
    with pytest.raises(ConfigError, match="at least 4 x 4 pixels"):
        export(model, tmp_path / "y.pt2", size=2)
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"differ from the model's by .*\(kind\).*nothing was kept"):
        export(model, tmp_path / "y.pt2", tasks=["kind"])
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r'pip install "mtl-lightning\[onnx\]"'):
        export(model, tmp_path / "y.onnx", format="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt2"]


@pytest.mark.slow
@pytest.mark.parametrize("build", [lambda: ResNet(), lambda: VGG("vgg11_bn"), GoogLeNet], ids=["resnet", "vgg", "googlenet"])
def test_every_encoder(build: Callable[[], Encoder], tmp_path: Path) -> None:
    done = export(predictor(build()), tmp_path / "model.pt2")
    assert max(done.differences.values()) < 1e-5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    auxiliary = "--model.tasks.mask.init_args.auxiliary=true"
    main(["fit", "--config", str(TINY), "--runs", str(folder), "--trainer.max_epochs=1", auxiliary])
    return folder / "tiny"


def test_from_the_command_line_to_a_program_without_this_package(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", "--run", str(run), "--size", "16"])
    out = capsys.readouterr().out
    assert "color: max. difference to the model" in out and "mask" not in out
    image = torch.rand(5, 3, 16, 16)
    torch.save(image, run / "image.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['mtl_lightning'] = sys.modules['lightning'] = None\n"
        "outputs = torch.export.load('model.pt2').module()(torch.load('image.pt'))\n"
        "torch.save(dict(outputs), 'outputs.pt')\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=run, check=False)
    assert done.returncode == 0, done.stderr
    outputs, model = torch.load(run / "outputs.pt"), load(run)
    for number, result in enumerate(model.predict(image)):
        assert outputs["color"][number].max().item() == pytest.approx(result["color"].probability, abs=1e-5)
        assert outputs["level"][number].tolist() == pytest.approx(list(result["level"].values.values()), abs=1e-5)


@pytest.mark.parametrize(
    ("args", "message", "code"),
    [
        (["--tasks=[colour]"], "--tasks: there is no task colour; the model has color, level, mask", 1),
        (["--output=model.txt"], "ends in .pt2", 1),
        (["--format=tflite"], "tflite", 2),
        (["--size=big"], "big", 2),
        (["--run=nowhere"], "nowhere: there is no such run folder or checkpoint", 1),
    ],
)
def test_mistakes_on_the_command_line(
    run: Path, args: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", "--run", str(run), "--output", str(run / "new.pt2"), *args])
    error = capsys.readouterr().err
    assert caught.value.code == code
    assert message in error and "Traceback" not in error
    assert not (run / "new.pt2").exists()


def test_onnx(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    done = export(run, tmp_path / "model.onnx", tasks=["color", "mask"], format="onnx", size=16)
    assert max(done.differences.values()) < 1e-5
    session = runtime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["color", "mask"]
    color, mask = session.run(None, {"image": torch.rand(4, 3, 16, 16).numpy()})
    assert color.shape == (4, 3) and mask.shape == (4, 2, 16, 16)
