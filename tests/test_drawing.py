"""The pictures of a run folder can be read: cells, legends, words, colours."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mtl_lightning.analysis import pictures
from mtl_lightning.analysis.pictures import Row, plot, samples
from mtl_lightning.tasks import Classification, Regression, SemanticSegmentation
from mtl_lightning.tasks.drawing import GUESS, number, write
from mtl_lightning.tasks.painting import draw_mask, iou_bars, palette


@pytest.fixture
def saved(monkeypatch):
    """The figures that would be written."""
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1324567.0, "1325000"), (9999.96, "10000"), (31.2000008, "31.2"), (30.0, "30"), (0.0, "0"), (-0.123456, "-0.1235"),
        (0.000123456, "0.0001235"), (2.5e7, "2.5e+07"), (1.23456e-9, "1.235e-09"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_numbers_have_four_digits_and_rarely_an_exponent(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("height", "width"), [(20, 400), (400, 20), (1, 50), (30, 30)])
def test_words_stay_in_their_cell_whatever_the_pictures_shape(height, width):
    figure = Figure(figsize=(1.4, 1.4))
    canvas = FigureCanvasAgg(figure)
    for text, unknown in (("scottish wire pointer\n100 %", ""), ("\n".join(f"name_{i}: {i}.123 mm" for i in range(14)), ""),
                          ("word " * 300, ""), ("sky, sea", "tree?, house?")):  # fmt: skip
        figure.clear()
        axes = figure.add_axes((0, 0, 1, 1))
        write(axes, torch.zeros(3, height, width), text, unknown=unknown)
        canvas.draw()
        cell = axes.get_window_extent()
        assert cell.width == pytest.approx(cell.height)
        boxes = [words.get_window_extent() for words in axes.texts]
        assert all(cell.x0 <= box.x0 and box.x1 <= cell.x1 and cell.y0 <= box.y0 and box.y1 <= cell.y1 for box in boxes)
        if unknown:
            assert boxes[1].y1 <= boxes[0].y0 + 2, "grey below the rest"


def test_a_class_has_one_colour_on_objects_of_all_colours():
    image = torch.zeros(3, 1, 4)
    image[0, :, 1] = image[2, :, 2] = 1.0
    axes = Figure().subplots()
    draw_mask(axes, image, torch.tensor([[0, 0, 0, -1]]), ["cat", "dog"])
    black, red, blue, grey = torch.tensor(axes.images[0].get_array()[0])
    assert torch.allclose(black, red - (red - black).mean(), atol=1e-6) and torch.allclose(red, blue, atol=1e-6)
    assert (black - palette(1)[0]).abs().max() < 0.15 and torch.allclose(grey, torch.tensor(0.6, dtype=grey.dtype))


def test_rows_are_square_and_even_with_an_id_and_one_legend_per_task(saved, tmp_path):
    tasks = {
        "kind": Classification(["a", "b"]),
        "mask": SemanticSegmentation(["ground", "cat", "dog"]),
        "box": Regression(["x0", "y0", "x1", "y1"], mean=0.0, std=1.0),
    }
    tasks["box"].learn(torch.zeros(1, 4))
    corners, rows = torch.tensor([0.1, 0.1, 0.9, 0.9]), []
    for height, width in ((8, 80), (80, 8), (16, 16)):
        guess = {"kind": torch.zeros(2), "mask": torch.rand(3, height, width), "box": corners}
        truth = {"kind": None, "mask": torch.full((height, width), 2), "box": corners}
        rows.append(Row(torch.ones(3, height, width), guess, truth, f"some/long/folder/of/pictures/{height}.png"))
    samples(rows, tasks, tmp_path / "unused.png")
    (figure,) = saved
    FigureCanvasAgg(figure).draw()
    cells = [axes.get_window_extent() for axes in figure.axes]
    assert len(cells) == 21
    assert all(cell.width == pytest.approx(cells[0].width) and cell.height == pytest.approx(cell.width) for cell in cells)
    assert figure.axes[0].get_xlim() == (-0.5, 79.5) and figure.axes[7].get_ylim() == (79.5, -0.5), "whole pictures"
    first, second, third = (cells[index].y0 for index in (0, 7, 14))
    assert first - second == pytest.approx(second - third)
    assert all(
        label.endswith(".png") and len(label) == 26 for label in (figure.axes[0].get_ylabel(), figure.axes[7].get_ylabel())
    )
    legends = [axes.get_legend() for axes in figure.axes]
    words = [sorted(text.get_text() for text in legend.get_texts()) for legend in legends if legend]
    assert words == [["cat", "dog", "ground"], ["prediction", "truth"]]
    assert all(legend is None for legend in legends[:14]) and legends[14 + 3] and legends[14 + 5]


def test_a_true_box_can_be_seen_on_white_and_a_predicted_one_says_nothing_of_right_or_wrong():
    task = Regression(["x0", "y0", "x1", "y1"], mean=0.0, std=1.0)
    task.learn(torch.zeros(1, 4))
    figure = Figure(figsize=(2, 2))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    corners = torch.tensor([0.25, 0.25, 0.75, 0.75])
    task.draw(axes, torch.ones(3, 32, 32), None, corners)
    canvas.draw()
    pixels = torch.tensor(np.asarray(canvas.buffer_rgba()))[..., :3]
    assert (pixels.amax(2) < 60).sum() > 100, "dark under the white dashes"
    task.draw(axes, torch.ones(3, 32, 32), corners, None)
    assert [patch.get_label() for patch in axes.patches] == ["truth", "prediction"]
    assert (
        axes.patches[1].get_edgecolor() == pytest.approx(torch.tensor([9, 105, 218, 255]).div(255).tolist())
        and GUESS == "#0969da"
    )


def test_charts_grow_with_their_classes_and_have_titles_and_counts(saved, tmp_path):
    for classes in (3, 36):
        task = Classification([f"c{index}" for index in range(classes)])
        confusion = torch.eye(classes, dtype=torch.long) * 7
        plot(task.plots({"confusion": confusion})["confusion"], "breed", "confusion", tmp_path / "unused.png")
    small, large = saved
    assert large.get_size_inches()[1] > small.get_size_inches()[1] + 1
    assert large.get_suptitle() == "breed: confusion, rows add up to 1"
    assert [label.get_text() for label in large.axes[0].get_yticklabels()][:2] == ["c0 (7)", "c1 (7)"]
    FigureCanvasAgg(large).draw()
    labels = [label.get_window_extent() for label in large.axes[0].get_yticklabels()]
    assert all(lower.y1 <= upper.y0 + 1 for upper, lower in pairwise(labels)), "no two overlap"
    plot(lambda axes: iou_bars({f"c{index}": 0.5 for index in range(40)}, axes), "mask", "iou", tmp_path / "unused.png")
    assert saved[2].get_suptitle().startswith("mask: intersection over union") and saved[2].get_size_inches()[1] > 8
