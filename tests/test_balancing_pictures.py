"""weights.png and gradients.png: when they are drawn, and what is in them."""

import csv
from itertools import pairwise
from pathlib import Path

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.figure import Figure

from mtl_lightning.analysis import agreement, balancing
from mtl_lightning.main import main

CONF = Path(__file__).parent / "conf" / "tiny.yaml"


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that would be written, by their file's name."""
    figures: dict[str, Figure] = {}
    for module in (agreement, balancing):
        monkeypatch.setattr(module, "save", lambda figure, path: figures.update({path.name: figure}))
    return figures


def draw(folder: Path, weights: list[list[float]], cosine: float = -0.25) -> list[str]:
    """Writes a metrics.csv with these weights, a list a step, and draws it."""
    names = [f"task_{position}" for position in range(len(weights[0]))]
    rows = [
        (step, 0, f"weight/{name}", value)
        for step, values in enumerate(weights)
        for name, value in zip(names, values, strict=True)
    ]
    for epoch in range(2):
        rows += [(epoch, epoch, f"train/gradient/norm/{name}", 10.0**epoch) for name in names]
        rows += [(epoch, epoch, f"train/gradient/cosine/{a}/{b}", cosine * epoch) for a, b in pairwise(names)]
        rows.append((epoch, epoch, "train/gradient/conflicts", 0.5 * epoch))
    with (folder / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "epoch", "name", "value"), *rows])
    balancing.balancing(folder / "metrics.csv", names, folder)
    return names


def words(axes: matplotlib.axes.Axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("steps", [2, 50])
def test_weights_of_some_tasks_share_a_chart(tmp_path: Path, saved: dict[str, Figure], steps: int) -> None:
    generator = np.random.default_rng(0)
    values = [[0.01 * float(generator.uniform(0.5, 2)), float(generator.uniform(0.5, 2)), 0.0] for _ in range(steps)]
    draw(tmp_path, values)
    (axes,) = saved["weights.png"].axes
    assert axes.get_yscale() == "log"
    # Many noisy points are drawn as logged and smoothed; what was always 0 is not there.
    assert len(axes.lines) == (4 if steps == 50 else 2)
    assert ("thin" in saved["weights.png"].get_suptitle()) == (steps == 50)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["task_0", "task_1"]
    if steps == 50:
        raw, shown = (np.log(np.asarray(axes.lines[number].get_ydata(), float)) for number in (0, 1))
        assert shown.std() < 0.6 * raw.std() and shown.mean() == pytest.approx(raw.mean(), abs=0.1)


def test_weights_of_many_tasks_have_a_chart_each(tmp_path: Path, saved: dict[str, Figure]) -> None:
    names = draw(tmp_path, [[1.0 + task + step for task in range(40)] for step in range(3)])
    shown = [axes for axes in saved["weights.png"].axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in shown] == names
    assert all(len(axes.collections) == 1 and len(axes.lines) == 1 for axes in shown)


def test_negative_weights_have_an_axis_through_0(tmp_path: Path, saved: dict[str, Figure]) -> None:
    draw(tmp_path, [[1.0, -0.001], [100.0, 0.1]])
    assert saved["weights.png"].axes[0].get_yscale() == "symlog"


def test_weights_that_never_change_are_no_picture(tmp_path: Path, saved: dict[str, Figure]) -> None:
    # A task that is absent from a step has the weight 0 there.
    draw(tmp_path, [[1.0, 0.5], [0.0, 0.5], [1.0, 0.0]])
    assert set(saved) == {"gradients.png"}


@pytest.mark.parametrize("tasks", [2, 3, 11, 40])
def test_the_heat_map(tmp_path: Path, saved: dict[str, Figure], tasks: int) -> None:
    names = draw(tmp_path, [[1.0] * tasks])
    grid, norms, conflicts = saved["gradients.png"].axes
    image = np.ma.filled(grid.images[0].get_array(), np.nan)  # type: ignore[arg-type]
    assert image[0, 1] == image[1, 0] == -0.25 and np.isnan(image[0, 0])
    low, high = grid.images[0].get_clim()
    assert low == -high  # type: ignore[operator]
    assert words(grid) == {"\N{MINUS SIGN}.25"}
    for labels in (grid.get_xticklabels(), grid.get_yticklabels()):
        assert [label.get_text() for label in labels] == names
    assert norms.get_xscale() == "log"
    assert list(conflicts.lines[0].get_ydata()) == [0.0, 0.5]


def test_numbers_in_cells() -> None:
    assert [agreement.cosine_text(value) for value in (-0.004, 0.126, -1.0, 1.0)] == ["0", ".13", "\N{MINUS SIGN}1.00", "1.00"]
    assert agreement.cosine_text(-0.0042, digits=3) == "\N{MINUS SIGN}.004"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.weighting=NashMTL"], {"weights.png", "gradients.png"}),
        (["--model.weighting=UW"], {"weights.png"}),
        (["--model.engine.watch_every=2"], {"gradients.png"}),
        (["--model.weighting=PCGrad", "--model.only=[level]"], set()),
        (["--model.weighting=MGDA", "--data.init_args.val_rows=0"], {"weights.png", "gradients.png"}),
    ],
)
def test_a_run_leaves_them_in_its_folder(tmp_path: Path, options: list[str], expected: set[str]) -> None:
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path), *options])
    found = {path.name for path in (tmp_path / "tiny").glob("*.png")}
    assert found & {"weights.png", "gradients.png"} == expected
    page = (tmp_path / "tiny" / "summary.md").read_text()
    assert all(f"({name})" in page for name in found)
