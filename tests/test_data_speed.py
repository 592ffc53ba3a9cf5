"""The samples per second, and whether training waits for them."""

import csv
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from mtl_lightning.callbacks.data_speed import DataSpeed
from mtl_lightning.main import main

CONF = Path(__file__).parent / "conf" / "tiny.yaml"


class Sleep(v2.Transform):
    """Takes a while; of a scalar image size, so that YAML can say how long."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        time.sleep(self.seconds)
        return {}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return inpt


class Impatient(DataSpeed):
    """Looks at every epoch."""

    def __init__(self) -> None:
        super().__init__(seconds=0.0)


def logged(folder: Path) -> dict[str, list[float]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["name"].startswith("data/")]
    return {name: [float(row["value"]) for row in rows if row["name"] == name] for name in {row["name"] for row in rows}}


def test_a_run_that_waits_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--config", str(CONF), "--runs", str(tmp_path), "--trainer.callbacks+=tests.test_data_speed.Impatient",
            "--trainer.limit_val_batches=0", "--trainer.max_epochs=3"]  # fmt: skip
    main(
        [
            "fit",
            *args,
            "--data.init_args.train_transforms=[{class_path: tests.test_data_speed.Sleep, init_args: {seconds: 0.02}}]",
        ]
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data: ")]
    assert len(lines) == 1
    assert "samples/s, waited" in lines[0] and "raise data.init_args.num_workers (0; " in lines[0]
    values = logged(tmp_path / "tiny")
    assert len(values["data/wait"]) == len(values["data/samples_per_second"]) == 3
    assert all(0.3 < wait <= 1 for wait in values["data/wait"])
    assert all(10 < speed < 50 for speed in values["data/samples_per_second"][1:])


def test_short_epochs_are_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path), "--trainer.limit_val_batches=0", "--trainer.max_epochs=1"])
    assert "data: " not in capsys.readouterr().out and not logged(tmp_path / "tiny")


def test_shares_by_hand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two epochs of 4 s, 1 s of validation each, in which 1.5 s were waited; 80 rows on each of two processes."""
    import mtl_lightning.callbacks.data_speed as place

    class Loader(SimpleNamespace):
        pass

    monkeypatch.setattr(place, "ResumableLoader", Loader)
    now, sent = [100.0], []
    monkeypatch.setattr(place.time, "perf_counter", lambda: now[0])
    loader = Loader(waited=7.0, rows=8)
    logger = SimpleNamespace(log_metrics=lambda record, step: sent.append((step, record)))
    data = SimpleNamespace(num_workers=10_000, cache=None, image_size=32)
    trainer: Any = SimpleNamespace(
        train_dataloader=loader, world_size=2, loggers=[logger], current_epoch=1, global_step=20, datamodule=data
    )
    callback, module = DataSpeed(seconds=5), torch.nn.Module()
    for _ in range(2):
        for step in range(3):
            callback.on_train_batch_start(trainer, module, None, step)
        now[0] += 4
        loader.waited, loader.rows = loader.waited + 1.5, loader.rows + 80
        callback.on_validation_start(trainer, module)
        now[0] += 1
        callback.on_validation_end(trainer, module)
        callback.on_train_epoch_end(trainer, module)
    assert sent == [(19, {"data/samples_per_second": 40.0, "data/wait": 0.375, "epoch": 1})]
    expected = "data: 40 samples/s, waited 38 % of the training time; keep decoded pictures (data.init_args.cache), or store"
    assert expected in capsys.readouterr().out
