"""What must hold for every weighting method in half precision and in another order of memory, and what is refused."""

from pathlib import Path

import pandas
import pytest
import torch
from PIL import Image

from mtl_lightning import export, load
from mtl_lightning.errors import ConfigError
from mtl_lightning.main import main
from mtl_lightning.precision import check_precision, for_predictions
from mtl_lightning.tasks import Depth, SemanticSegmentation, SurfaceNormals, Task
from tests.half import Half
from tests.methods import methods

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
APART = 0.03
"""What losses may differ by after four steps, as a share."""
JUMPING = ("SDMGrad",)
"""Its weights leap from task to task, and the last digit of a gradient decides where to."""


@pytest.mark.parametrize("name", methods())
def test_every_method_learns_the_same(name: str) -> None:
    """In bf16, in fp16 with a loss scaler and in channels_last as in float32, with products of gradients in full precision."""
    before, full = Half(name, None).losses(), Half(name, None).go(4).losses()
    for way, half in {**HALVES, "channels_last": None}.items():
        run = Half(name, half, channels_last=way == "channels_last").go(4)
        after = run.losses()
        assert all(bool(value.isfinite().all()) for key, value in run.state().items() if key.startswith("model."))
        assert float(after.sum()) < float(before.sum()), way
        if name not in JUMPING:
            assert torch.allclose(after, full, rtol=1e-3 if half is None else APART, atol=0), way
        assert not run.said
        for seen in run.seen:
            gramian = seen.ndim == 2
            assert seen.dtype == (torch.float64 if run.method.from_gradients is not None and gramian else seen.dtype)
            assert seen.dtype in (torch.float32, torch.float64)
            # A product that was rounded to half precision on its way is equal to what it is rounded to.
            assert not torch.equal(seen.to(torch.bfloat16).to(seen.dtype), seen)


@pytest.mark.parametrize("half", HALVES)
def test_counts_and_sums_over_many_pixels_are_exact(half: str) -> None:
    """In half precision a count ends at 256 or 2048, and a sum at 65504."""
    pictures, side = 2, 96
    prediction = torch.zeros(pictures, 3, side, side, requires_grad=True)
    labelled = torch.ones(pictures, dtype=torch.bool)
    classes = (torch.arange(side * side) % 3).view(1, side, side).expand(pictures, -1, -1)
    distances = torch.full((pictures, 1, side, side), 40.0)
    up = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(pictures, -1, side, side)
    cases: list[tuple[Task, torch.Tensor, int]] = [
        (SemanticSegmentation(classes=["a", "b", "c"], loss=loss), classes, 3)  # type: ignore[arg-type]
        for loss in ("ce", "dice", "ce+dice")
    ]
    cases += [(Depth(loss=loss), distances, 1) for loss in ("l1", "silog", "berhu")]  # type: ignore[arg-type]
    cases.append((SurfaceNormals(), up, 3))
    for task, target, channels in cases:
        raw = prediction[:, :channels] + torch.linspace(-1, 1, side)
        with torch.autocast("cpu", dtype=HALVES[half]):
            terms = task.loss(raw.to(HALVES[half]), target, labelled)
        exact = task.loss(raw.to(HALVES[half]).double(), target, labelled)
        for name, term in terms.items():
            assert term.total.dtype == term.denominator.dtype == torch.float32
            assert float(term.denominator) == float(exact[name].denominator)
            assert float(term.total.detach()) == pytest.approx(float(exact[name].total.detach()), rel=1e-5)


@pytest.mark.parametrize("precision", ["16-mixed", "16", 16, "16-true", "bf16-true"])
def test_what_trains_in_another_precision_than_it_says_or_loses_numbers(precision: object) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.precision is .*set it to"):
        check_precision(precision, "cpu")


def test_what_is_taken() -> None:
    for precision in (None, "bf16-mixed", "bf16", "32-true", 32, "64-true"):
        check_precision(precision, "cpu")
    check_precision("16-mixed", "gpu")
    assert for_predictions("bf16-mixed") == "32-true" and for_predictions("64-true") == "64-true"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("method", ["Equal", "NashMTL", "FAMO"])
def test_scenes_score_the_same_in_every_precision(tmp_path: Path, method: str) -> None:
    """Within what experiments/precision states: 0.03 of the score, 5 % of each loss."""
    words = ["fit", "--config", "configs/scenes.yaml", "--runs", str(tmp_path), f"--model.weighting={method}",
             "--data.init_args.train_size=128", "--data.init_args.val_size=96", "--data.init_args.size=32",
             "--data.init_args.num_workers=0", "--model.encoder.init_args.widths=[8, 16, 32]", "--trainer.max_epochs=2",
             "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"]  # fmt: skip
    ways = {
        "full": [],
        "bf16": ["--trainer.precision=bf16-mixed"],
        "fp16": ["--trainer.plugins+=tests.fp16.HalfOnCpu"],
        "channels_last": ["--model.channels_last=true"],
    }
    found = {}
    for way, more in ways.items():
        main([*words, *more, f"--name={way}"])
        lines = (line.split(",") for line in (tmp_path / way / "metrics.csv").read_text().splitlines()[1:])
        found[way] = {key: float(value) for _, _, key, value in lines}
        assert "gradient/skipped" not in found[way]
        assert found[way]["val/score"] == pytest.approx(found["full"]["val/score"], abs=0.03)
        for key, value in found["full"].items():
            if key.startswith("val/") and key.endswith("/loss"):
                assert found[way][key] == pytest.approx(value, rel=0.05), (way, key)


@pytest.mark.usefixtures("no_pictures")
def test_a_run_in_bf16_scores_the_same_and_predicts_in_full_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    basis = ["--config", str(CONF), "--runs", str(tmp_path)]
    for name, precision in (("full", "32-true"), ("half", "bf16-mixed")):
        main(["fit", *basis, f"--name={name}", f"--trainer.precision={precision}", "--model.weighting=UPGrad"])
    scores = []
    for name in ("full", "half"):
        lines = (line.split(",") for line in (tmp_path / name / "metrics.csv").read_text().splitlines())
        scores.append([float(value) for _, _, key, value in lines if key == "val/score"])
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        noise = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(number))
        Image.fromarray((noise * 255).byte().numpy()).save(pictures / f"{number}.png")
    main(["predict", "--config", str(tmp_path / "half/config.yaml"), "--name=half", f"--inputs={pictures}"])
    table = pandas.read_csv(tmp_path / "half/predictions/predictions.csv")
    results = load(tmp_path / "half").predict(sorted(pictures.iterdir()))
    assert list(table["level.all"]) == pytest.approx([result["level"].values["all"] for result in results], rel=1e-5)
    assert list(table["color.probability"]) == pytest.approx([result["color"].probability for result in results], rel=1e-5)
    with pytest.raises(SystemExit):
        main(["fit", *basis, "--trainer.precision=16-mixed"])
    assert "trainer.precision is 16-mixed" in capsys.readouterr().err and not (tmp_path / "tiny").exists()
    done = export(tmp_path / "half", tmp_path / "half.pt2", size=32)
    model, picture = load(tmp_path / "half"), torch.rand(4, 3, 32, 32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        exact = model.double()(picture.double())
        outputs = torch.export.load(done.path).module()(picture)
    for task, value in outputs.items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, model.tasks[task].interpret(exact[task]).float(), atol=1e-5), task
