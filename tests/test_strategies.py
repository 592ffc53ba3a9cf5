"""Strategies under which what is computed would be wrong are refused before training."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from mtl_lightning.encoders import SmallCNN
from mtl_lightning.errors import ConfigError
from mtl_lightning.main import main
from mtl_lightning.module import MultiTaskModule
from mtl_lightning.strategies import check_strategy, check_wrapped
from mtl_lightning.tasks import Classification
from tests.test_distributed import arguments


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_sharded_parameters_are_refused(kind: Any) -> None:
    # Only the class matters, and some of them need a library or a GPU to be built.
    strategy = object.__new__(kind)
    with pytest.raises(ConfigError, match=rf"trainer.strategy is {kind.__name__}.*set trainer.strategy to ddp"):
        check_strategy(strategy)
    module = MultiTaskModule({"color": Classification(classes=["a", "b"])}, SmallCNN([4]), torch.optim.SGD)
    module._trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=kind.__name__):
        module.configure_model()


@pytest.mark.parametrize("name", ["FullySharded", "fsdp", "ddp_spawn"])
def test_what_cannot_be_started_is_refused_by_name(tmp_path: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments(tmp_path, "net", 1), f"--trainer.strategy={name}"])
    error = capsys.readouterr().err
    assert caught.value.code == 1 and f"error: trainer.strategy is {name}" in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_whole_parameters_are_taken() -> None:
    for strategy in (None, SingleDeviceStrategy(torch.device("cpu")), DDPStrategy(find_unused_parameters=True)):
        check_strategy(strategy)
    check_wrapped(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("wrapped", [True])
def test_a_graph_that_is_taken_for_all_steps_is_refused(wrapped: bool) -> None:
    with pytest.raises(ConfigError, match="static_graph"):
        check_wrapped(SimpleNamespace(static_graph=wrapped))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="SyncBatchNorm takes tensors of a GPU alone")
def test_synchronised_batch_norm(tmp_path: Any) -> None:
    gpu = ["--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.strategy=ddp", "--trainer.precision=32-true"]
    main([*arguments(tmp_path, "net", 1), *gpu, "--model.encoder.init_args.norm=true", "--trainer.sync_batchnorm=true"])
    assert (tmp_path / "net/checkpoints/last.ckpt").is_file()
