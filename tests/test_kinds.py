"""Grades, numbers with uncertainty, and angles: mathematics in closed form, missing entries, what is learnt and shown."""

import csv
import io
import json
import math
import pickle
import warnings
from pathlib import Path
from typing import get_args

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from mtl_lightning.analysis.check.tallies import TALLIES
from mtl_lightning.analysis.pictures import Row
from mtl_lightning.batch import Kind
from mtl_lightning.callbacks.tracking import boxes, caption
from mtl_lightning.errors import CheckpointError, ConfigError, DataError
from mtl_lightning.features import FeatureSpec
from mtl_lightning.main import main
from mtl_lightning.metrics.angles import turned
from mtl_lightning.metrics.ordinal import quadratic_kappa
from mtl_lightning.tasks import Angle, HeteroscedasticRegression, Ordinal
from mtl_lightning.tasks.angle import circular_median
from mtl_lightning.tasks.drawing import RIGHT, WRONG

NAN = float("nan")
ROWS = 9
LABELLED = torch.tensor([True, False, True, True, False, True, True, False, True])


def uncertain(**options):
    task = HeteroscedasticRegression(["a", "b", "c"], **options)
    task.learn(100 + 7 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
    return task


def angle(**options):
    task = Angle(["a", "b", "c"], **options)
    task.learn(100 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
    return task


def grades(**options):
    task = Ordinal(["low", "middle", "high", "top"], **options)
    task.learn(torch.tensor([0, 1, 1, 2, 3]))
    return task


TASKS = {
    "ordinal": grades,
    "nll": uncertain,
    "beta": lambda: uncertain(beta=0.5),
    "degrees": angle,
    "axes": lambda: angle(period=180.0, loss="cosine"),
    "radians": lambda: angle(unit="radians", signed=True),
}
every_task = pytest.mark.parametrize("task", [make() for make in TASKS.values()], ids=TASKS)


def draw_targets(task, rows=ROWS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(rows, task.channels, generator=generator)
    if task.kind == "class":
        return prediction, torch.randint(4, (rows,), generator=generator)
    target = 100 + 7 * torch.randn(rows, 3, generator=generator)
    target[0, 1] = target[3, 0] = target[5, 2] = NAN
    return prediction, target


def mean_loss(task, prediction, target, labelled):
    term = task.loss(prediction, target, labelled)["loss"]
    return term.coefficient * term.total / term.denominator


def evaluate(task, *batches):
    metrics = task.metrics()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prediction, target, labelled in batches:
            task.update(metrics, prediction, target, labelled)
        return metrics.compute()


# --- what all of them promise ---------------------------------------------------------------------------------------------


@every_task
@pytest.mark.parametrize("rubbish", [NAN, math.inf, 1e30])
def test_unlabelled_elements_have_no_gradient_at_all(task, rubbish):
    prediction, target = draw_targets(task)
    known = LABELLED.unsqueeze(1) if target.ndim == 1 else LABELLED[:, None] & ~target.isnan()
    known = known.repeat(1, task.channels // known.shape[1])
    prediction[~LABELLED] = rubbish
    prediction.requires_grad_()
    mean_loss(task, prediction, target, LABELLED).backward()
    assert prediction.grad.isfinite().all()
    assert (prediction.grad[~known] == 0).all()
    assert (prediction.grad[known] != 0).all()


@every_task
def test_no_label_at_all_is_an_exact_attached_zero(task):
    prediction, target = draw_targets(task)
    prediction.requires_grad_()
    term = task.loss(prediction, target, torch.zeros(ROWS, dtype=torch.bool))["loss"]
    assert term.total == 0 and term.denominator == 0 and not term.denominator.requires_grad
    term.total.backward()
    assert (prediction.grad == 0).all()


@every_task
def test_totals_and_denominators_of_parts_add_up(task):
    prediction, target = draw_targets(task)
    prediction = prediction.double()
    whole = task.loss(prediction, target, LABELLED)["loss"]
    parts = [task.loss(prediction[rows], target[rows], LABELLED[rows])["loss"] for rows in (slice(0, 4), slice(4, None))]
    torch.testing.assert_close(parts[0].total + parts[1].total, whole.total)
    torch.testing.assert_close(parts[0].denominator + parts[1].denominator, whole.denominator)
    assert set(task.loss(prediction, target, LABELLED)) == set(task.terms)


@every_task
def test_half_precision_is_raised_and_double_is_kept(task):
    prediction, target = draw_targets(task)
    assert task.loss(prediction.double(), target, LABELLED)["loss"].total.dtype == torch.float64
    expected = mean_loss(task, prediction.bfloat16().float(), target, LABELLED)
    with torch.autocast("cpu", torch.bfloat16):
        found = mean_loss(task, prediction.bfloat16(), target, LABELLED)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@every_task
def test_metrics_do_not_depend_on_how_rows_are_spread(task):
    prediction, target = draw_targets(task)
    whole = evaluate(task, (prediction, target, LABELLED))
    pieces = evaluate(task, *[(prediction[i : i + 1], target[i : i + 1], LABELLED[i : i + 1]) for i in range(ROWS)])
    left, right = task.metrics(), task.metrics()
    task.update(left, prediction[:2], target[:2], LABELLED[:2])
    task.update(right, prediction[2:], target[2:], LABELLED[2:])
    left["scores"].merge_state(right["scores"])
    for other in (pieces, left.compute()):
        assert set(other) == set(whole)
        for key, value in whole.items():
            torch.testing.assert_close(other[key], value)
    assert set(task.measures) | {"count"} == set(whole) - {"confusion"}
    assert next(iter(task.measures)) in whole


@every_task
def test_a_split_without_labels_has_a_count_of_zero_alone(task):
    prediction, target = draw_targets(task)
    metrics = task.metrics()
    task.update(metrics, prediction, target, torch.zeros(ROWS).bool())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns of a compute without an update
        assert {key: int(value) for key, value in metrics.compute().items()} == {"count": 0}


@every_task
def test_predictions_that_are_no_numbers_do_not_stop_the_metrics(task):
    prediction, target = draw_targets(task)
    scores = evaluate(task, (torch.full_like(prediction, NAN), target, LABELLED))
    assert scores["count"] > 0
    assert task.kind == "class" or scores[next(iter(task.measures))].isnan()


@every_task
def test_what_was_learnt_survives_json_and_a_safe_checkpoint(task):
    _, target = draw_targets(task)
    fresh = next(make() for make in TASKS.values() if type(make()) is type(task))
    fresh.names = None
    fresh.restore(json.loads(json.dumps(task.facts())))
    if getattr(fresh, "period", 0) == getattr(task, "period", 0):
        assert torch.equal(fresh.trivial(target), task.trivial(target))
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"t": task}).state_dict(), file)
    file.seek(0)
    again = nn.ModuleDict({"t": type(task)(task.names)})
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again["t"].facts() == task.facts()
    with pytest.raises(CheckpointError, match="'one', 'two'"):
        type(task)(["one", "two"]).restore(task.facts())


@every_task
def test_nothing_is_guessed_before_learning(task):
    fresh = type(task)(task.names)
    fresh.restore(fresh.facts())
    with pytest.raises(RuntimeError, match=r"learn\(\)"):
        fresh.trivial(torch.zeros(2, 3))
    with pytest.raises(DataError, match="no label"):
        fresh.learn([])
    with pytest.raises(ConfigError, match="does not know"):
        _ = type(task)().channels


@every_task
def test_the_default_head_fits_the_target(task):
    head = task.build_head([FeatureSpec(6, 16)])
    assert head.linear.out_features == task.channels
    assert not task.target.dense


# --- grades ---------------------------------------------------------------------------------------------------------------


def test_cumulative_cross_entropy_by_hand():
    task = grades()
    prediction = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    s = torch.sigmoid(prediction[0])
    first = -(s[0].log() + s[1].log() + (1 - s[2]).log()) / 3
    expected = (first + math.log(2)) / 2
    found = mean_loss(task, prediction, torch.tensor([2, 0]), torch.ones(2).bool())
    torch.testing.assert_close(found, expected)


def test_contradicting_answers_become_a_distribution_with_the_decoded_median():
    task = grades()
    prediction = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 2
    probabilities = task.probabilities(prediction)
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(200))
    median = (probabilities.cumsum(1) < 0.5).sum(1)
    assert task.decode(prediction) == [task.names[grade] for grade in median.tolist()]
    assert task.decode(torch.tensor([[-1.0, 2.0, -3.0], [3.0, 2.0, 1.0], [-3.0, -4.0, -5.0]])) == ["middle", "top", "low"]


def test_grade_scores_by_hand():
    task = grades()
    sure = torch.tensor([[-9.0, -9, -9], [9, -9, -9], [9, 9, -9], [9, 9, 9]])
    prediction, target = sure[[0, 1, 3, 3, 0]], torch.tensor([0, 2, 3, 1, 0])
    scores = evaluate(task, (prediction, target, torch.tensor([True] * 4 + [False])))
    assert scores["count"] == 4
    assert scores["mae"] == pytest.approx((0 + 1 + 0 + 2) / 4)
    assert scores["accuracy"] == pytest.approx(2 / 4)
    # Truth 0, 2, 3, 1 against prediction 0, 1, 3, 3: 1 + 4 disagreement, chance: the mean over all pairs, times 4.
    chance = sum((t - p) ** 2 for t in (0, 2, 3, 1) for p in (0, 1, 3, 3)) / 4
    assert scores["kappa"] == pytest.approx(1 - 5 / chance)
    assert scores["confusion"][1].tolist() == [0, 0, 0, 1]


def test_kappa_of_chance_of_agreement_and_of_nothing():
    row = torch.tensor([[2.0], [3.0], [5.0]])
    assert float(quadratic_kappa(row @ row.T)) == pytest.approx(0)
    assert float(quadratic_kappa(torch.diag(torch.tensor([2, 1, 4])))) == 1
    assert float(quadratic_kappa(torch.tensor([[0, 0, 3], [0, 0, 0], [3, 0, 0]]))) == pytest.approx(-1)
    assert quadratic_kappa(torch.tensor([[7, 0], [0, 0]])).isnan()
    task = grades()
    assert "kappa" not in evaluate(task, (torch.full((3, 3), -1.0), torch.zeros(3, dtype=torch.long), torch.ones(3).bool()))


def test_the_usual_grade_is_the_median():
    task = Ordinal(["a", "b", "c", "d"])
    task.learn(torch.tensor([0, 0, 2, 3, 3]))
    labels = torch.tensor([0, 1])
    assert task.decode(task.trivial(labels)) == ["c", "c"]
    torch.testing.assert_close(task.probabilities(task.trivial(labels))[0], torch.tensor([0.4, 0.0, 0.2, 0.4]), atol=1e-5, rtol=0)


def test_grades_need_an_order():
    task = Ordinal()
    task.name = "severity"
    task.names = ["mild", "severe"]
    with pytest.raises(ConfigError, match=r"grades mild, severe cannot be told.*severity"):
        _ = task.channels
    task.names = ["0.5", "1", "10"]
    assert task.channels == 2
    task.names = ["1"]
    with pytest.raises(ConfigError, match="at least two"):
        _ = task.channels
    with pytest.raises(ConfigError, match="each once"):
        Ordinal(["a", "a"])
    with pytest.raises(DataError, match=r"grade 4, expected 0 to 3 \(low"):
        grades().check(torch.tensor(4), "row 3")
    with pytest.raises(DataError, match="one grade's index"):
        grades().check(torch.tensor([1]), "row 3")


# --- numbers with uncertainty ---------------------------------------------------------------------------------------------


def test_nll_by_hand_with_missing_entries():
    task = HeteroscedasticRegression(["a", "b"], mean=[10.0, 0.0], std=[2.0, 5.0])
    task.learn([torch.tensor([9.0, 1.0])])
    prediction = torch.tensor([[0.5, 1.0, math.log(4.0), 0.0], [1.0, 7.0, -1.0, 50.0]], requires_grad=True)
    target = torch.tensor([[14.0, NAN], [12.0, 5.0]])
    least = math.log(0.03)
    # Residuals in standardised units: 0.5 - 2 with variance 4; 1 - 1 with e^-1; 7 - 1 with the largest variance, 900.
    parts = [(math.log(4.0) + 1.5**2 / 4) / 2, -0.5, (math.log(900.0) + 36 / 900) / 2]
    found = mean_loss(task, prediction, target, torch.ones(2).bool())
    assert float(found.detach()) == pytest.approx(sum(parts) / 3 - least, rel=1e-6)
    found.backward()
    # d/dm = residual / variance, d/ds = (1 - residual^2 / variance) / 2, and none where the variance is at its limit.
    expected = torch.tensor([[-1.5 / 4, 0, (1 - 2.25 / 4) / 2, 0], [0, 6 / 900, 0.5, 0]]) / 3
    torch.testing.assert_close(prediction.grad, expected)


def test_beta_of_one_gives_means_the_gradients_of_the_squared_error():
    task = uncertain(beta=1.0)
    prediction, target = draw_targets(task)
    prediction.requires_grad_()
    task.loss(prediction, target, LABELLED)["loss"].total.backward()
    mean, std, _ = task._learnt()
    known = LABELLED[:, None] & ~target.isnan()
    residual = torch.where(known, prediction[:, :3] - (target - mean) / std, 0.0)
    torch.testing.assert_close(prediction.grad[:, :3], residual.detach())


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_loss_is_never_negative_and_least_at_the_true_variance(beta):
    task = uncertain(beta=beta)
    prediction = torch.zeros(40, 6)
    prediction[:, 3:] = torch.linspace(-20, 20, 40)[:, None]
    target = task._learnt()[0].expand(40, 3)
    assert float(task.loss(prediction, target, torch.ones(40).bool())["loss"].total) >= 0
    plain = uncertain()
    off = target + 0.5 * plain._learnt()[1]
    scales = torch.linspace(-4, 2, 601)
    each = [float(plain.loss(torch.tensor([[0, 0, 0, s, s, s]]), off[:1], torch.ones(1).bool())["loss"].total) for s in scales]
    assert float(scales[int(np.argmin(each))]) == pytest.approx(2 * math.log(0.5), abs=0.01)


def test_uncertainty_scores_by_hand():
    task = HeteroscedasticRegression(["a"], mean=10.0, std=2.0)
    task.learn([torch.tensor([9.0]), torch.tensor([11.0])])
    prediction = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, math.log(4.0)], [0.0, 0.0]])
    target = torch.tensor([[13.2], [13.4], [13.4], [NAN]])
    scores = evaluate(task, (prediction, target, torch.tensor([True, True, True, False])))
    # 1.645 standard deviations of 2 reach to 13.29, of 4 to 16.58.
    assert scores["count"] == 3 and scores["coverage"] == pytest.approx(2 / 3)
    assert scores["mae"] == pytest.approx((3.2 + 3.4 + 3.4) / 3)
    normal = torch.distributions.Normal(torch.zeros(3), torch.tensor([1.0, 1.0, 2.0]))
    assert float(scores["nll"]) == pytest.approx(-float(normal.log_prob(torch.tensor([1.6, 1.7, 1.7])).mean()), rel=1e-6)


def test_uncertainty_of_a_normal_sample_is_covered_and_the_trivial_one_scores_as_it_should():
    generator = torch.Generator().manual_seed(1)
    target = 50 + 3 * torch.randn(4000, 1, generator=generator)
    task = HeteroscedasticRegression(["a"])
    task.learn(target)
    scores = evaluate(task, (task.trivial(target), target, torch.ones(4000).bool()))
    assert float(scores["coverage"]) == pytest.approx(0.9, abs=0.015)
    assert float(scores["nll"]) == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=1e-4)
    assert float(scores["r2"]) == pytest.approx(0, abs=1e-4)
    given = HeteroscedasticRegression(["a"], mean=0.0, std=10.0)
    given.learn(target)
    assert str(given.decode(given.trivial(target[:1]))[0]) == f"{float(target.mean()):.6g} ± {float(target.std()):.3g}"


def test_numbers_are_decoded_and_drawn_with_their_deviations():
    task = HeteroscedasticRegression(["age"], mean=30.0, std=10.0, unit="years")
    task.learn(torch.zeros(1, 1))
    (estimate,) = task.decode(torch.tensor([[0.12, 2 * math.log(0.4)]]))
    assert float(estimate) == pytest.approx(31.2) and estimate.std == pytest.approx(4)
    assert str(estimate) == f"{estimate:.4g}" == "31.2 ± 4"
    again = pickle.loads(pickle.dumps(estimate))
    assert again == estimate and again.std == estimate.std
    assert words(drawn(task, torch.tensor([0.12, 2 * math.log(0.4)]), None)) == ["31.2 ± 4 years"]
    assert words(drawn(task, None, torch.tensor([30.0]))) == ["30 years"]
    assert words(drawn(task, None, None)) == ["no label"]
    two = HeteroscedasticRegression(["a", "b"], mean=0.0, std=1.0)
    two.learn(torch.zeros(1, 2))
    assert [str(entry) for entry in two.decode(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))[0]] == ["1 ± 1", "2 ± 1"]
    box = HeteroscedasticRegression(["x0", "y0", "x1", "y1"], mean=0.0, std=1.0)
    box.learn(torch.zeros(1, 4))
    assert len(drawn(box, torch.tensor([0.2, 0.2, 0.8, 0.8, 0, 0, 0, 0]), torch.tensor([0.0, 0, 1, 1])).patches) == 2


def test_boxes_with_deviations_are_boxes_to_trackers():
    task = HeteroscedasticRegression(["x0", "y0", "x1", "y1"], mean=0.0, std=1.0)
    task.learn(torch.zeros(1, 4))
    row = Row(torch.rand(3, 8, 8), {"head": torch.tensor([0.2, 0.25, 0.5, 0.75, 0, 0, 0, 0])}, {"head": None})
    place = boxes(row, {"head": task})["head"]["box_data"][0]["position"]
    assert json.loads(json.dumps(place)) == pytest.approx({"minX": 0.2, "maxX": 0.5, "minY": 0.25, "maxY": 0.75})
    assert "head: 0.2 ± 1, 0.25 ± 1" in caption("a.png", row, {"head": task})


def test_the_check_counts_every_kind():
    assert set(TALLIES) == set(get_args(Kind))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"beta": 1.5}, "beta is 1.5"), ({"min_std": 0.0}, "min_std is 0.0"), ({"min_std": 2.0, "max_std": 1.0}, "max_std 1.0")],
)
def test_wrong_settings_of_uncertainty(options, message):
    with pytest.raises(ConfigError, match=message):
        HeteroscedasticRegression(["a"], **options)


def test_uncertainty_weighting_gets_a_likelihood():
    assert {task().noise for task in TASKS.values()} == {"softmax"}


# --- angles ---------------------------------------------------------------------------------------------------------------


def vectors(degrees, length=1.0):
    turn = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return length * torch.cat([turn.cos(), turn.sin()], -1)


@pytest.mark.parametrize("length", [0.3, 1.0, 20.0])
def test_angular_loss_is_one_minus_the_cosine_whatever_the_length(length):
    task = Angle(["a", "b"], loss="cosine")
    prediction = vectors([[350.0, 10.0], [90.0, 0.0]], length)
    target = torch.tensor([[10.0, NAN], [-90.0, 720.0]])
    expected = ((1 - math.cos(math.radians(20))) + 2 + 0) / 3
    assert float(mean_loss(task, prediction, target, torch.ones(2).bool())) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    lines = Angle(["a", "b"], period=180.0, loss="cosine")
    # Half the period is opposite now, and a whole one is none at all.
    found = lines.loss(vectors([[0.0, 180.0]], length), torch.tensor([[180.0, 90.0]]), torch.ones(1).bool())["loss"]
    assert float(found.total) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("loss", ["vector", "cosine"])
def test_a_vector_of_no_length_is_pulled_to_the_truth(loss):
    task = Angle(["a"], loss=loss)
    prediction = torch.zeros(1, 2, requires_grad=True)
    mean_loss(task, prediction, torch.tensor([[30.0]]), torch.ones(1).bool()).backward()
    assert prediction.grad.isfinite().all()
    torch.testing.assert_close(F.normalize(-prediction.grad), vectors([[30.0]]), atol=1e-6, rtol=0)


def test_vector_loss_by_hand():
    task = Angle(["a", "b"])
    target = torch.tensor([[10.0, NAN], [-90.0, 720.0]])
    unit = vectors([[350.0, 10.0], [90.0, 0.0]])
    expected = ((1 - math.cos(math.radians(20))) + 2 + 0) / 3
    assert float(mean_loss(task, unit, target, torch.ones(2).bool())) == pytest.approx(expected, rel=1e-5)
    # Of two opposite labels nothing is known: the best vector has no length.
    assert float(mean_loss(task, torch.zeros(2, 4), target, torch.ones(2).bool())) == pytest.approx(0.5)


def test_angular_scores_by_hand():
    task = Angle(["a"])
    prediction = vectors([[350.0], [10.0], [200.0], [0.0], [45.0]])
    target = torch.tensor([[10.0], [-10.0], [20.0], [90.0], [NAN]])
    scores = evaluate(task, (prediction, target, torch.tensor([True] * 4 + [False])))
    assert scores["count"] == 4
    assert float(scores["mean"]) == pytest.approx((20 + 20 + 180 + 90) / 4, abs=1e-3)
    assert float(scores["median"]) == pytest.approx(20, abs=0.03)
    axes = Angle(["a"], period=180.0)
    scores = evaluate(axes, (vectors([[2 * 170.0], [2 * 45.0]]), torch.tensor([[10.0], [-45.0]]), torch.ones(2).bool()))
    assert float(scores["mean"]) == pytest.approx((20 + 90) / 2, abs=1e-3)
    radians = Angle(["a"], unit="radians")
    scores = evaluate(radians, (vectors([[90.0]]), torch.tensor([[math.pi]]), torch.ones(1).bool()))
    assert float(scores["mean"]) == pytest.approx(90, abs=1e-3)


def test_turned():
    assert turned(torch.tensor([350.0, 190.0, -180.0, 179.0, 720.0]), 360.0).tolist() == [-10, -170, -180, 179, 0]


@pytest.mark.parametrize("size", [1, 2, 5, 40])
@pytest.mark.parametrize("period", [360.0, 180.0, 2 * math.pi])
def test_circular_median_is_the_best_of_all_angles(size, period):
    for seed in range(20):
        angles = period * torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 - period

        def cost(guess, angles=angles):
            return float(turned(angles - guess, period).abs().mean())

        median = circular_median(angles, period)
        assert 0 <= float(median) < period
        least = min(cost(guess) for guess in torch.linspace(0, period, 361, dtype=torch.float64))
        assert cost(median) <= least + 1e-9
    assert circular_median(torch.zeros(0), period) == 0


def test_the_usual_angle_crosses_the_end_of_the_circle():
    task = Angle(["a", "never"], signed=True)
    task.learn([torch.tensor([value, NAN]) for value in (350.0, 355.0, 5.0, 10.0, 358.0)])
    assert task.facts()["centre"] == pytest.approx([358.0, 0.0])
    (decoded,) = task.decode(task.trivial(torch.zeros(1, 2)))
    assert decoded == pytest.approx([-2.0, 0.0], abs=1e-3)


def test_angles_are_decoded_in_their_unit():
    prediction = vectors([[270.0]])
    assert Angle(["a"]).decode(prediction) == [pytest.approx(270, abs=1e-3)]
    assert Angle(["a"], signed=True).decode(prediction) == [pytest.approx(-90, abs=1e-3)]
    assert Angle(["a"], period=180.0).decode(prediction) == [pytest.approx(135, abs=1e-3)]
    assert Angle(["a"], unit="radians").decode(prediction) == [pytest.approx(1.5 * math.pi, abs=1e-5)]
    assert Angle(["a", "b"]).decode(vectors([[10.0, 20.0]])) == [pytest.approx([10, 20], abs=1e-3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"period": 0.0}, "period is 0"),
        ({"unit": "turns"}, "degrees or radians"),
        ({"names": ["a", "a"]}, "each once"),
        ({"loss": "l1"}, "vector or cosine"),
    ],
)
def test_wrong_settings_of_angles(options, message):
    with pytest.raises(ConfigError, match=message):
        Angle(**options)


def test_bad_angles_are_refused():
    task = Angle(["a", "b"])
    task.check(torch.tensor([-400.0, NAN]), "row 1")
    for bad, message in (([math.inf, 0.0], "'a' is infinite"), ([NAN, NAN], "no angle is known"), ([1.0], "shape")):
        with pytest.raises(DataError, match=rf"row 1, task 'angle': .*{message}"):
            task.check(torch.tensor(bad), "row 1")


# --- pictures -------------------------------------------------------------------------------------------------------------


def drawn(task, prediction, target):
    axes = Figure().subplots()
    task.draw(axes, torch.rand(3, 21, 41), prediction, target)
    return axes


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_a_grade_is_written_with_its_probability():
    task = grades()
    prediction = torch.tensor([2.0, -1.0, -2.0])
    axes = drawn(task, prediction, torch.tensor(1))
    share = float(torch.sigmoid(torch.tensor(2.0)) - torch.sigmoid(torch.tensor(-1.0)))
    assert words(axes) == [f"middle\n{100 * share:.0f} %"] and axes.texts[0].get_color() == RIGHT
    assert drawn(task, prediction, torch.tensor(0)).texts[0].get_color() == WRONG
    assert words(drawn(task, None, torch.tensor(3))) == ["top"] and words(drawn(task, None, None)) == ["no label"]
    plot = Figure().subplots()
    task.plots({"confusion": torch.eye(4, dtype=torch.long)})["confusion"](plot)
    assert [label.get_text() for label in plot.get_xticklabels()] == task.names


def test_an_angle_is_a_hand_on_a_dial():
    task = Angle(["heading"])
    axes = drawn(task, vectors([90.0]), torch.tensor([0.0]))
    truth, guess = (line.get_xydata().tolist() for line in axes.lines)
    assert truth == [[20.0, 10.0], [pytest.approx(36.4), 10.0]]
    assert guess == [[20.0, 10.0], [pytest.approx(20.0, abs=1e-4), pytest.approx(-6.4)]]
    assert words(axes) == ["90°"]
    axes = drawn(Angle(["a"], period=180.0, unit="degrees"), vectors([0.0]), None)
    assert axes.lines[0].get_xydata()[0].tolist() == [pytest.approx(3.6), pytest.approx(10.0)]
    assert words(drawn(task, None, torch.tensor([NAN]))) == ["not known"]
    assert words(drawn(Angle(["a", "b"], unit="radians"), vectors([0.0, 90.0]), None)) == ["a: 0 rad\nb: 1.57 rad"]
    assert words(drawn(task, None, None)) == ["no label"]


# --- whole runs -----------------------------------------------------------------------------------------------------------

SPLITS = ("train", "train", "train", "val", "test")


def write(root, rows, header=("image", "split", "grade", "level", "turn", "line")):
    with (root / "all.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A bright half-plane per picture: which way it looks, how bright it is."""
    root = tmp_path_factory.mktemp("kinds")
    generator = np.random.default_rng(0)
    y, x = np.mgrid[-7.5:8, -7.5:8]
    rows = []
    for number in range(60):
        turn, level = generator.uniform(0, 360), generator.uniform(0.3, 1)
        bright = np.cos(np.radians(turn)) * x - np.sin(np.radians(turn)) * y > 0
        Image.fromarray((255 * level * bright).astype(np.uint8)).convert("RGB").save(root / f"{number}.png")
        grade = ["0.5", "2", "10"][min(2, int((level - 0.3) / 0.25))]
        cells = [grade, f"{10 * level:.3f}", f"{turn - 180:.2f}", f"{turn % 180:.2f}"]
        hidden = generator.random(4) < 0.3
        rows.append(
            [f"{number}.png", SPLITS[number % 5], *("" if hide else cell for hide, cell in zip(hidden, cells, strict=True))]
        )
    write(root, rows)
    return root


def configure(root: Path, folder: Path, **tasks) -> Path:
    config = {
        "name": "kinds",
        "model": {
            "tasks": tasks,
            "encoder": {"class_path": "SmallCNN", "init_args": {"widths": [8, 8]}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {
            "class_path": "ManifestDataModule",
            "init_args": {
                "root": str(root), "manifest": "all.csv", "batch_size": 8, "num_workers": 0, "split": {"column": "split"},
                "columns": {"lean": {"columns": ["turn", "line"]}},
            },
        },
        "trainer": {"max_epochs": 6, "accelerator": "cpu", "devices": 1},
    }  # fmt: skip
    if "lean" not in tasks:
        del config["data"]["init_args"]["columns"]
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    return file


GRID = {"class_path": "MLP", "init_args": {"hidden": [16], "pool": 2}}
ALL = {
    "grade": {"class_path": "Ordinal"},
    "level": {"class_path": "HeteroscedasticRegression", "init_args": {"beta": 0.5, "unit": "cm"}},
    "turn": {"class_path": "Angle", "init_args": {"signed": True, "head": GRID}},
    "line": {"class_path": "Angle", "init_args": {"period": 180}},
    "lean": {"class_path": "Angle"},
}


def test_a_whole_run_from_columns(pictures, tmp_path):
    file = configure(pictures, tmp_path, **ALL)
    args = ["--config", str(file), "--runs", str(tmp_path), "--model.weighting=UW"]
    main(["fit", *args])
    main(["test", *args])
    main(["predict", *args])
    run = tmp_path / "kinds"
    summary = json.loads((run / "summary.json").read_text())
    for name, task in summary["test"]["tasks"].items():
        assert task["labelled_rows"] > 0 and math.isfinite(task["metrics"]["loss"]), name
    assert summary["val"]["tasks"]["turn"]["skill"] > 0
    assert summary["val"]["tasks"]["level"]["measures"]["coverage"]["higher_is_better"] is None
    assert "coverage → 0.9" in (run / "summary.md").read_text()
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state["tasks.grade._extra_state"]["names"] == ["0.5", "2", "10"]
    assert (run / "grade_confusion_val.png").exists()
    with (run / "predictions/predictions.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 12
    assert {row["grade"] for row in rows} <= {"0.5", "2", "10"}
    assert all(float(row["level.std"]) > 0 and -180 <= float(row["turn"]) < 180 for row in rows)
    assert all(0 <= float(row["line"]) < 180 and len([key for key in row if key.startswith("lean.")]) == 2 for row in rows)


def failure(capsys, *args):
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert caught.value.code == 1
    return capsys.readouterr().err


def test_grades_in_words_without_an_order_end_before_training(tmp_path, pictures, capsys):
    names = sorted(path.name for path in pictures.glob("*.png"))[:10]
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / "data" / name).write_bytes((pictures / name).read_bytes())
    write(tmp_path / "data", [[name, SPLITS[i % 5], ("mild", "severe")[i % 2]] for i, name in enumerate(names)],
          ("image", "split", "grade"))  # fmt: skip
    file = configure(tmp_path / "data", tmp_path, grade=ALL["grade"])
    message = failure(capsys, "fit", "--config", str(file), "--runs", str(tmp_path / "runs"))
    assert "mild, severe cannot be told" in message and "model.tasks.grade.init_args.classes" in message
    assert not (tmp_path / "runs/kinds").exists()
    main(["fit", "--config", str(file), "--runs", str(tmp_path / "runs"), "--trainer.max_epochs=1",
          '--model.tasks.grade.init_args.classes=["mild", "severe"]'])  # fmt: skip


def test_wrong_cells_and_wrong_monitors_are_named(tmp_path, pictures, capsys):
    file = configure(pictures, tmp_path, **ALL)
    args = ("fit", "--config", str(file), "--runs", str(tmp_path / "runs"))
    wrong = '--model.tasks.grade.init_args.classes=["1", "2"]'
    assert "column 'grade', task 'grade': '0.5' is not one of the classes 1, 2" in failure(capsys, *args, wrong)
    assert "best at 0.9, neither small nor large" in failure(capsys, *args, "--checkpoint.monitor=val/level/coverage")
    box = '--data.init_args.columns={"turn": {"box": ["grade", "level", "turn", "line"]}}'
    assert "a task of numbers, not angle" in failure(capsys, *args, box, "--model.only=[turn]")
    assert "columns" in failure(capsys, *args, '--data.init_args.columns={"grade": ["grade", "level"]}', "--model.only=[grade]")
