"""Gates and attention: what is logged and drawn around a run, and means over several processes."""

import csv
import json
from pathlib import Path
from threading import Barrier, Thread

import matplotlib.image
import pytest
import torch
from torch import Tensor

from mtl_lightning.analysis import attention_pictures, sharing_pictures
from mtl_lightning.analysis.attention_pictures import Look
from mtl_lightning.analysis.diagram import diagram
from mtl_lightning.analysis.layout import lay_out
from mtl_lightning.architectures import Table
from mtl_lightning.architectures.seen import Seen, gather
from mtl_lightning.callbacks.report import Report
from mtl_lightning.main import main
from tests.sharers import Parting, network

CONF = Path(__file__).parent / "conf" / "tiny.yaml"


@pytest.fixture(autouse=True)
def _without_the_reports_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Report, "_pictures", lambda *_: None)


def fit(runs: Path, *args: str) -> None:
    main(["fit", "--config", str(CONF), "--runs", str(runs), "--trainer.enable_progress_bar=false", *args])


def logged(folder: Path) -> dict[tuple[int, str], float]:
    with (folder / "metrics.csv").open() as file:
        rows = [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]
    found = {(step, name): value for step, name, value in rows if name.startswith("sharing/")}
    assert len(found) == sum(name.startswith("sharing/") for _, name, _ in rows)
    return found


def test_a_run_with_gates_and_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looking = "--model.architecture=tests.sharers.Looking"
    fit(tmp_path, looking, "--trainer.max_epochs=1")
    run = tmp_path / "tiny"
    told = capsys.readouterr().out
    assert "tiny: the network" in told and "FLOPs forward" in told
    first = logged(run)
    assert {step for step, _ in first} == {5} and len(first) == 9
    for task in ("color", "level", "mask"):
        assert sum(value for (_, name), value in first.items() if name.startswith(f"sharing/gates/{task}/")) == pytest.approx(1)
    model = json.loads((run / "summary.json").read_text())["model"]
    assert model["parameters"] == model["learning"] == 2707 and model["flops"]["alone"].keys() == {"color", "level", "mask"}
    assert "| color | 2,511 | 39 | 27 |" in (run / "model.md").read_text()
    assert {"model.png", "sharing.png", "attention.png"} <= {path.name for path in run.iterdir()}
    assert "(sharing.png)" in (run / "summary.md").read_text() and "(model.md)" in (run / "summary.md").read_text()

    # A run that goes on keeps what was logged, and its numbers of the network beside its results.
    fit(tmp_path, looking, "--ckpt_path=last", "--trainer.enable_model_summary=false")
    after = logged(run)
    assert {step for step, _ in after} == {5, 11} and {key: after[key] for key in first} == first
    assert json.loads((run / "summary.json").read_text()).keys() == {"model", "val"}
    assert "the network" not in capsys.readouterr().out
    main(["test", "--config", str(CONF), "--runs", str(tmp_path), looking])
    assert {"sharing_test.png", "attention_test.png"} <= {path.name for path in run.iterdir()}


def test_nothing_is_written_where_there_is_nothing(tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_epochs=1")
    assert not logged(tmp_path / "tiny")
    names = {path.name for path in (tmp_path / "tiny").iterdir()}
    assert "model.png" in names and not names & {"sharing.png", "attention.png"}


def test_a_run_that_comes_to_nothing_leaves_no_folder(tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.fast_dev_run=true")
    assert not list(tmp_path.iterdir())


class _Ranks:
    """Adds tensors up over threads."""

    def __init__(self, number: int) -> None:
        self.barrier, self.given = Barrier(number, timeout=10), [torch.zeros(0)] * number

    def add_up(self, rank: int, tensor: Tensor) -> Tensor:
        self.given[rank] = tensor
        self.barrier.wait()
        total = torch.stack(self.given).sum(0)
        self.barrier.wait()
        return total


def test_means_over_processes_weigh_by_rows() -> None:
    """Also where one process saw nothing of a gate, and where nobody did."""
    ranks, kept = _Ranks(2), [[Seen() for _ in range(3)] for _ in range(2)]
    for rank, gates in enumerate(kept):
        for gate in gates:
            gate.watch(True)
        gates[0].add(torch.full((1 + 2 * rank, 2, 3), float(rank)))
    kept[1][1].add(torch.tensor([[1.0, 3.0], [3.0, 5.0]]))
    threads = [
        Thread(target=gather, args=(gates, lambda tensor, rank=rank: ranks.add_up(rank, tensor)))
        for rank, gates in enumerate(kept)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for gates in kept:
        first, second, third = (gate.mean for gate in gates)
        assert first is not None and second is not None and third is None
        torch.testing.assert_close(first, torch.full((2, 3), 0.75, dtype=torch.double))
        torch.testing.assert_close(second, torch.tensor([2.0, 4.0], dtype=torch.double))


def test_large_tables_are_drawn_and_not_logged(tmp_path: Path) -> None:
    names = [f"task_{number}" for number in range(40)]
    tables = {"stitch": Table(names, names, torch.randn(40, 40)), "gates": Table(names[:2], ["a", "b"], torch.rand(2, 2))}
    assert set(sharing_pictures.record(tables)) == {f"sharing/gates/{row}/{column}" for row in names[:2] for column in "ab"}
    sharing_pictures.sharing_picture(tables, tmp_path / "metrics.csv", tmp_path / "sharing.png")
    assert (tmp_path / "sharing.png").stat().st_size > 10_000


def test_attention_is_laid_over_the_picture_without_padding(tmp_path: Path) -> None:
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    look = Look("a", torch.rand(3, 8, 8), {"x": [left], "y": [left, left.T]}, (8, 4))
    columns = attention_pictures._columns(look)
    assert list(columns) == ["x", "y, map 1", "y, map 2"]
    # Of a picture whose right half is padding, only the left half of the map is seen.
    assert bool((columns["x"] == 1).all()) and columns["x"].shape == (8, 4)
    maps = {f"task {number}": [torch.tensor([[0.5, 0.6, 0.7, 0.8, 0.0, 0.0]])] for number in range(14)}
    text = Look("b", None, maps, (1, 4), "one two three four")
    # Nor are a text's empty places.
    assert attention_pictures._columns(text)["task 0"].tolist() == [pytest.approx([0.5, 0.6, 0.7, 0.8])]
    for name, looks in {"picture": [look], "text": [text]}.items():
        attention_pictures.attention_picture(looks, tmp_path / f"{name}.png")
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.1


def test_a_diagram_of_many_tasks_is_no_taller(tmp_path: Path) -> None:
    heights = {}
    for tasks in (14, 40):
        diagram(lay_out(network(Parting, tasks), {"image": torch.rand(1, 3, 8, 8)}), "$t", tmp_path / f"{tasks}.png")
        heights[tasks] = matplotlib.image.imread(tmp_path / f"{tasks}.png").shape[0]
    assert heights[40] <= heights[14]
