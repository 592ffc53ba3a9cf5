"""Parameters in parts (FSDP) give what whole ones give."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtl_lightning.architectures import CrossStitch
from mtl_lightning.compiling import CompileOptions
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.errors import ConfigError
from mtl_lightning.gradients import EngineOptions
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.penalties import WeightPenalty
from mtl_lightning.sharding import shard
from mtl_lightning.strategies import FullySharded, check_sharded
from mtl_lightning.tasks import Classification
from mtl_lightning.weighting import IMTL, UW, MoDo
from tests.many import on_processes
from tests.test_distributed import CONF, alone, apart, arguments, assert_equal, checkpoint, run

pytestmark = pytest.mark.usefixtures("no_pictures")

SHARDED = ["--trainer.strategy={class_path: FullySharded}", "--trainer.callbacks=[tests.watch.InParts]"]
EXACT = ["--trainer.precision=null", "--trainer.plugins=lightning.pytorch.plugins.precision.DoublePrecision"]
"""float64, which Lightning takes for a strategy of this kind as a plugin alone."""
THAW = ["--model.freeze={stages: 1, epochs: 1}", "--trainer.gradient_clip_val=0.5"]
ADAM = ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.init_args.lr=0.01", "--model.weighting=UW", *THAW]
FEATURES = ["--model.engine.gradients=features"]
MORE = {
    "accumulate": ["--model.weighting=UW", *THAW, "--trainer.accumulate_grad_batches=2"],
    "FAMO, clip by value": ["--model.weighting=FAMO", "--trainer.gradient_clip_val=0.01",
                            "--trainer.gradient_clip_algorithm=value"],
    "UPGrad, accumulate": ["--model.weighting=UPGrad", *FEATURES, "--trainer.accumulate_grad_batches=2"],
    "NTKMTL": ["--model.weighting=NTKMTL", *FEATURES],
    "MMoE": ["--model.architecture=MMoE"],
    "PLE": ["--model.architecture=PLE"],
    "CGC": ["--model.architecture=CGC"],
    "adapters": ["--model.architecture=TaskAdapters"],
    "conditioned": ["--model.architecture=TaskConditioned"],
    "split": ["--model.architecture=SplitAt", "--model.architecture.init_args.shared=1"],
}  # fmt: skip


def parts(runs: Path, name: str, *more: str) -> list[str]:
    """Of a fit in float64 on two processes."""
    return [*arguments(runs, name, 2), *SHARDED, *EXACT, *more]


@pytest.mark.slow
def test_parts_equal_whole(tmp_path: Path) -> None:
    runs, one = tmp_path / "many", tmp_path / "one"
    features = ["--model.weighting=IMTL", *FEATURES, "--model.engine.update_every=2", "--trainer.max_epochs=1"]
    alone(*arguments(runs, "on", 1, *ADAM, "--trainer.max_steps=17"))
    pair = [
        parts(runs, "on", *ADAM, "--ckpt_path=last"),
        parts(runs, "features", *features),
        parts(runs, "refused", "--model.weighting=MGDA"),
    ]
    said = on_processes(2, tmp_path, pair)
    assert [code for code, _, _ in said[0]] == [0, 0, 1], said
    assert "MGDA: gradients of each task" in said[0][2][2] + said[1][2][2] and not (runs / "refused").exists()
    alone(*arguments(one, "on", 1, *ADAM))
    alone(*arguments(one, "features", 1, *features))
    for name in ("on", "features"):
        assert_equal(one / name, runs / name)


@pytest.mark.slow
def test_a_checkpoint_of_parts_goes_on_with_one_process(tmp_path: Path) -> None:
    said = on_processes(2, tmp_path, [parts(tmp_path / "many", "run", *ADAM, "--trainer.max_steps=17")])
    assert said[0][0][0] == 0, said
    alone(*arguments(tmp_path / "many", "run", 1, *ADAM, "--ckpt_path=last"))
    alone(*arguments(tmp_path / "one", "run", 1, *ADAM))
    assert_equal(tmp_path / "one/run", tmp_path / "many/run")


@pytest.mark.slow
def test_more_of_it(tmp_path: Path) -> None:
    names = {case: f"case-{number}" for number, case in enumerate(MORE)}
    said = on_processes(2, tmp_path, [parts(tmp_path / "many", name, *MORE[case]) for case, name in names.items()])
    for number, (case, name) in enumerate(names.items()):
        assert said[0][number][0] == 0, (case, said[0][number], said[1][number])
        alone(*arguments(tmp_path / "one", name, 1, *MORE[case]))
        assert apart(tmp_path / "one" / name, tmp_path / "many" / name) < 1e-9, case


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--model.only=[level]", "--trainer.accumulate_grad_batches=2"]])
@pytest.mark.parametrize("method", ["--model.weighting=UW", "--model.weighting=IMTL"])
@pytest.mark.parametrize("kind", ["infinite", "gradient"])
def test_a_bad_number_is_left_out_on_all(tmp_path: Path, kind: str, method: str, more: list[str]) -> None:
    spoilt = ["--data=tests.spoilt.SpoiltDataModule", f"--data.init_args.spoil={{train-5: {kind}}}", "--data.init_args.rows=45",
              "--data.init_args.hidden={color: 0.8, mask: 0.9}", "--data.init_args.num_workers=0",
              "--model.tasks.level=tests.spoilt.Rooted", method, *FEATURES, *more]  # fmt: skip
    said = on_processes(2, tmp_path, [parts(tmp_path / "many", "bad", *spoilt, "--data.init_args.batch_size=4")])
    assert said[0][0][0] == 0, said
    alone(*arguments(tmp_path / "one", "bad", 1, *spoilt, "--data.init_args.batch_size=8"))
    assert_equal(tmp_path / "one/bad", tmp_path / "many/bad")
    found = [checkpoint(tmp_path / side / "bad")["state_dict"]["bad._extra_state"] for side in ("one", "many")]
    assert found[0] == found[1] and found[0]["counts"]


@pytest.mark.slow
def test_a_run_in_parts_goes_on_bit_for_bit(tmp_path: Path) -> None:
    # Batch norm, dropout, bfloat16; then on one process: test, predict and load.
    runs = tmp_path / "runs"
    fit = ["fit", "--config", str(CONF), "--runs", str(runs), "--data.init_args.batch_size=4", "--trainer.devices=2", *SHARDED,
           "--trainer.precision=bf16-mixed", "--model.tasks.color.init_args.head=MLP",
           "--model.tasks.color.init_args.head.init_args.dropout=0.5"]  # fmt: skip
    last = "--ckpt_path=last"
    said = on_processes(
        2, tmp_path, [[*fit, "--name=whole"], [*fit, "--name=cut", "--trainer.max_steps=7"], [*fit, "--name=cut", last]]
    )
    assert [code for code, _, _ in said[0] + said[1]] == [0] * 6, said
    assert apart(runs / "whole", runs / "cut") == 0
    assert checkpoint(runs / "cut")["global_step"] == 12
    assert {path.name for path in (runs / "cut/checkpoints").iterdir()} == {"last.ckpt", "best.ckpt", "previous.ckpt"}
    for command in ("test", "predict"):
        alone(command, "--config", str(runs / "cut/config.yaml"), "--runs", str(runs), "--name=cut", "--trainer.devices=1",
              "--trainer.strategy=auto", "--trainer.callbacks=null", "--trainer.precision=32-true")  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weighting": IMTL()}, "model.weighting IMTL: .* set model.engine.gradients to features"),
        ({"weighting": MoDo(), "engine": EngineOptions("features")}, "model.weighting MoDo: gradients of further batches"),
        ({"engine": EngineOptions(watch_every=2)}, "model.engine.watch_every"),
        ({"penalties": [WeightPenalty(l2=1.0)]}, "model.penalties.*weight_decay"),
        ({"compiled": CompileOptions()}, "model.compile"),
        ({"channels_last": True}, "model.channels_last"),
        ({"scaler": torch.amp.GradScaler("cpu")}, "trainer.precision 16-mixed"),
        ({"layers": object()}, "trainer.sync_batchnorm"),
    ],
)
def test_what_needs_whole_parameters_is_refused(given: dict[str, Any], message: str) -> None:
    strategy = FullySharded()
    trainer = SimpleNamespace(strategy=strategy, precision_plugin=SimpleNamespace(scaler=None))
    fine: dict[str, Any] = {"weighting": UW(), "engine": EngineOptions(), "penalties": [], "compiled": None}
    check_sharded(trainer, **fine, channels_last=False)
    strategy._layer_sync, trainer.precision_plugin.scaler = given.get("layers"), given.get("scaler")
    rest = {key: value for key, value in given.items() if key not in ("layers", "scaler")}
    with pytest.raises(ConfigError, match=f"(?s)FullySharded cannot be had with {message}"):
        check_sharded(trainer, **{**fine, "channels_last": False, **rest})


def test_an_architecture_that_reads_parameters_elsewhere_is_refused() -> None:
    tasks = {"color": Classification(classes=["a", "b"]), "kind": Classification(classes=["c", "d"])}
    model = MultiTaskModel(tasks, CrossStitch(SmallCNN([4, 4]), list(tasks)))
    with pytest.raises(ConfigError, match="CrossStitch reads parameters outside"):
        shard(model, torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", [["--model.weighting=UW"], ["--model.weighting=IMTL", *FEATURES]])
def test_on_a_gpu(tmp_path: Path, more: list[str]) -> None:
    gpu = [*more, "--trainer.accelerator=gpu", "--trainer.devices=1"]
    run(tmp_path / "one", 8, *gpu)
    run(tmp_path / "parts", 8, *gpu, *SHARDED, *EXACT)
    assert apart(tmp_path / "one/tiny", tmp_path / "parts/tiny") < 1e-9
