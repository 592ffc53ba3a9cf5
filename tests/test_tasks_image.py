"""Classification, multi-label and regression tasks: losses, metrics, what they learn, what they show."""

import io
import json
import math
import warnings

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn

from mtl_lightning.errors import CheckpointError, ConfigError, DataError
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.tasks.base import Task
from mtl_lightning.tasks.classification import Classification
from mtl_lightning.tasks.drawing import GREY, RIGHT, WRONG
from mtl_lightning.tasks.multilabel import MultiLabel
from mtl_lightning.tasks.regression import Regression

NAN = float("nan")
ROWS, SIZE = 9, 3
LABELLED = torch.tensor([True, False, True, True, False, True, True, False, True])


def numbers(loss="mse", **options):
    task = Regression(["a", "b", "c"], loss=loss, **options)
    task.learn(100 + 7 * torch.randn(50, SIZE, generator=torch.Generator().manual_seed(0)))
    return task


def learnt(task):
    labels = torch.tensor([0, 0, 1, 0, 2])
    task.learn(labels if isinstance(task, Classification) else F.one_hot(labels, SIZE).float())
    return task


TASKS = {
    "classification": lambda: Classification(["a", "b", "c"]),
    "weighted": lambda: Classification(["a", "b", "c"], class_weights=[0.2, 1.0, 3.0], label_smoothing=0.1),
    "balanced focal": lambda: learnt(Classification(["a", "b", "c"], "balanced", focal_gamma=2.0, top_k=[2])),
    "multilabel": lambda: MultiLabel(["a", "b", "c"]),
    "balanced focal multilabel": lambda: learnt(MultiLabel(["a", "b", "c"], "balanced", focal_gamma=0.5, threshold="validation")),
    "mse": lambda: numbers("mse"),
    "l1": lambda: numbers("l1"),
    "huber": lambda: numbers("huber", delta=0.5),
}
every_task = pytest.mark.parametrize("task", [make() for make in TASKS.values()], ids=TASKS)


def draw_targets(task, rows=ROWS, seed=1):
    """Random predictions and targets; some entries of vectors are not known."""
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(rows, SIZE, generator=generator)
    if isinstance(task, Classification):
        return prediction, torch.randint(SIZE, (rows,), generator=generator)
    if isinstance(task, MultiLabel):
        target = torch.randint(2, (rows, SIZE), generator=generator).float()
    else:
        target = 100 + 7 * torch.randn(rows, SIZE, generator=generator)
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


# --- loss -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_classification_is_cross_entropy_of_the_labelled_rows(weights, smoothing):
    task = Classification(["a", "b", "c"], weights, smoothing)
    prediction, target = draw_targets(task)
    weight = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(prediction[LABELLED], target[LABELLED], weight, label_smoothing=smoothing)
    torch.testing.assert_close(mean_loss(task, prediction, target, LABELLED), expected, atol=1e-6, rtol=0)


def test_multilabel_is_binary_cross_entropy_of_the_known_entries():
    task = MultiLabel(["a", "b", "c"])
    prediction, target = draw_targets(task)
    known = LABELLED[:, None] & ~target.isnan()
    expected = F.binary_cross_entropy_with_logits(prediction[known], target[known])
    torch.testing.assert_close(mean_loss(task, prediction, target, LABELLED), expected, atol=1e-6, rtol=0)
    assert task.loss(prediction, target, LABELLED)["loss"].denominator == 6 * 3 - 3


@pytest.mark.parametrize(
    ("loss", "function"),
    [
        ("mse", F.mse_loss),
        ("l1", F.l1_loss),
        ("huber", lambda p, t: F.huber_loss(p, t, delta=0.5)),
    ],
)
def test_regression_loss_is_taken_in_standard_deviations(loss, function):
    task = Regression(["a", "b", "c"], loss=loss, delta=0.5, mean=[100.0, 90.0, 80.0], std=7.0)
    task.learn([torch.zeros(3)])
    prediction, target = draw_targets(task)
    known = LABELLED[:, None] & ~target.isnan()
    expected = function(prediction[known], ((target - torch.tensor([100.0, 90.0, 80.0])) / 7)[known])
    torch.testing.assert_close(mean_loss(task, prediction, target, LABELLED), expected, atol=1e-6, rtol=1e-6)


@every_task
@pytest.mark.parametrize("rubbish", [NAN, math.inf, 1e30])
def test_unlabelled_elements_have_no_gradient_at_all(task, rubbish):
    prediction, target = draw_targets(task)
    known = LABELLED.clone() if target.ndim == 1 else LABELLED[:, None] & ~target.isnan()
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


# --- learning -------------------------------------------------------------------------------------------------------------


def test_class_frequencies_are_smoothed():
    task = Classification(["a", "b", "c"])
    task.learn(torch.tensor([0, 0, 0, 2, 2]))
    trivial = task.trivial(torch.zeros(4, dtype=torch.long))
    assert trivial.shape == (4, 3)
    torch.testing.assert_close(trivial[3].exp(), torch.tensor([4 / 8, 1 / 8, 3 / 8]))


def test_label_rates_are_of_the_known_entries():
    task = MultiLabel(["a", "b"])
    task.learn([torch.tensor([1.0, NAN]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, NAN])])
    trivial = task.trivial(torch.zeros(2, 2))
    torch.testing.assert_close(trivial[1].sigmoid(), torch.tensor([3 / 5, 1 / 3]))


def test_numbers_are_standardised_by_their_known_entries():
    task = Regression(["a", "constant", "unknown"])
    task.learn(iter([torch.tensor([1.0, 0.1, NAN]), torch.tensor([5.0, 0.1, NAN]), torch.tensor([NAN, 0.1, NAN])]))
    assert task.facts()["mean"] == pytest.approx([3, 0.1, 0]) and task.facts()["std"] == pytest.approx([2, 1, 1])
    assert task.decode(torch.tensor([[1.0, 0.0, 0.5]]))[0] == pytest.approx([5, 0.1, 0.5])
    task.learn([torch.tensor([float(row), 0.1, 0.3], dtype=torch.float64) for row in range(7)])
    assert task.facts()["std"] == pytest.approx([2, 1, 1])


@pytest.mark.parametrize(("loss", "guess"), [("mse", 30.0), ("l1", 10.0), ("huber", 10.0)])
def test_trivial_number_is_the_mean_or_the_median(loss, guess):
    task = Regression(["a"], loss=loss, mean=4.0, std=2.0)
    labels = torch.tensor([[5.0], [5.0], [10.0], [30.0], [100.0]])
    task.learn(labels)
    torch.testing.assert_close(task.trivial(labels), torch.full((5, 1), (guess - 4) / 2))
    assert task.decode(task.trivial(labels)) == pytest.approx([guess] * 5)


def test_trivial_predictors_score_what_no_skill_means():
    everything = torch.ones(5, dtype=torch.bool)
    labels = torch.tensor([0, 2, 2, 1, 2])
    task = Classification(["a", "b", "c"])
    task.learn(labels)
    scores = evaluate(task, (task.trivial(labels), labels, everything))
    assert scores["accuracy"] == pytest.approx(3 / 5) and scores["auroc"] == pytest.approx(0.5)
    values = torch.tensor([[2000.0], [2010.0], [2020.0], [1990.0], [1900.0]])
    task = Regression(["year"])
    task.learn(values)
    scores = evaluate(task, (task.trivial(values), values, everything))
    assert float(scores["r2"]) == pytest.approx(0, abs=1e-6)
    assert float(scores["rmse"]) == pytest.approx(np.std([2000, 2010, 2020, 1990, 1900]), rel=1e-5)


@every_task
def test_what_was_learnt_survives_json_and_a_safe_checkpoint(task):
    _, target = draw_targets(task)
    alike = next(make for make in TASKS.values() if list(make().measures) == list(task.measures) and type(make()) is type(task))
    fresh = alike()
    task.learn(target)
    fresh.names = None
    fresh.restore(json.loads(json.dumps(task.facts())))
    assert fresh.names == ["a", "b", "c"] and torch.equal(fresh.trivial(target), task.trivial(target))
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"t": task}).state_dict(), file)
    file.seek(0)
    again = nn.ModuleDict({"t": alike()})
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again["t"].facts() == task.facts()
    with pytest.raises(CheckpointError, match="'b', 'a'"):
        type(task)(["b", "a"]).restore(task.facts())


def test_a_checkpoint_wins_over_given_and_learnt_numbers():
    task = Regression(["a"], mean=1.0, std=1.0)
    task.learn(torch.zeros(3, 1))
    task.restore({"names": ["a"], "mean": [5.0], "std": [2.0], "centre": [7.0]})
    assert task.decode(torch.tensor([[1.0]])) == [7.0] and task.trivial(torch.zeros(1, 1)) == 1.0


def test_nothing_is_guessed_before_learning():
    for task in (Classification(["a"]), MultiLabel(["a"]), Regression(["a"])):
        assert set(task.facts()) >= {"names"}
        type(task)(["a"]).restore(task.facts())
        with pytest.raises(RuntimeError, match=r"learn\(\)"):
            task.trivial(torch.zeros(2, dtype=torch.long))


# --- metrics --------------------------------------------------------------------------------------------------------------


def logits_of(classes, size):
    return 4.0 * F.one_hot(torch.tensor(classes), size)


def test_classification_scores_by_hand_with_a_class_that_is_nowhere():
    task = Classification(["a", "b", "c", "nowhere"])
    target = torch.tensor([0, 0, 1, 1, 2, 0])
    prediction = logits_of([0, 1, 1, 1, 0, 3], 4)
    labelled = torch.tensor([True] * 5 + [False])
    scores = evaluate(task, (prediction, target, labelled))
    assert set(scores) == {"accuracy", "f1", "auroc", "ece", "reliability", "confusion", "count"}
    assert scores["count"] == 5 and scores["accuracy"] == pytest.approx(3 / 5)
    # F1 of a: 2·1/(2+2), of b: 2·2/(3+2), of c: 0; the class that is nowhere does not count.
    assert scores["f1"] == pytest.approx((2 / 4 + 4 / 5 + 0) / 3)
    assert scores["confusion"].tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    # Area of a, pair by pair: positives {hit, miss}, negatives {miss, miss, hit}.
    area_a = (1 + 1 + 0.5 + 0.5 + 0.5 + 0) / 6
    # b: positives {hit, hit}, negatives {miss, hit, miss}; c: positive {miss}, negatives all miss.
    area_b, area_c = 2 * (1 + 0.5 + 1) / 6, 0.5
    assert scores["auroc"] == pytest.approx((area_a + area_b + area_c) / 3)


def test_confusion_has_the_truth_as_rows_and_f1_counts_a_missed_class_as_zero():
    scores = evaluate(Classification(["a", "b"]), (logits_of([0, 0, 0], 2), torch.tensor([0, 1, 1]), torch.ones(3).bool()))
    assert scores["confusion"].tolist() == [[1, 0], [2, 0]]
    assert scores["f1"] == pytest.approx((2 / 4 + 0) / 2)


def exact_auroc(score, truth):
    pairs = score[truth == 1][:, None] - score[truth == 0][None]
    return float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())


@pytest.mark.parametrize("classes", [2, 30])
@pytest.mark.parametrize("scale", [0.3, 6.0])
def test_auroc_is_the_exact_one_to_a_thousandth(classes, scale):
    generator = torch.Generator().manual_seed(classes)
    task = Classification([f"c{index}" for index in range(classes)])
    target = torch.randint(classes, (600,), generator=generator)
    prediction = scale * (torch.randn(600, classes, generator=generator) + F.one_hot(target, classes))
    probability = prediction.double().softmax(1)
    expected = np.mean([exact_auroc(probability[:, index], target == index) for index in range(classes)])
    scores = evaluate(task, (prediction, target, torch.ones(600).bool()))
    assert float(scores["auroc"]) == pytest.approx(expected, abs=1e-3)


def test_certain_predictions_are_perfect_and_one_class_has_no_auroc():
    task = Classification(["a", "b", "c"])
    target = torch.tensor([0, 1, 2, 1])
    everything = torch.ones(4).bool()
    scores = evaluate(task, (1000 * logits_of([0, 1, 2, 1], 3), target, everything))
    assert [float(scores[key]) for key in ("accuracy", "f1", "auroc")] == [1, 1, 1]
    assert "auroc" not in evaluate(task, (torch.randn(4, 3), torch.ones(4, dtype=torch.long), everything))


def test_multilabel_scores_by_hand():
    task = MultiLabel(["a", "b", "never", "unknown"])
    # All logits of the first batch lie in 0..1: they are logits all the same.
    first = torch.tensor([[0.2, 0.1, -0.0, 0.3], [0.4, 0.3, 0.1, 0.1]])
    second = torch.tensor([[-1.0, -2.0, -1.0, 3.0], [2.0, -5.0, -3.0, 3.0]])
    prediction = torch.cat([first.abs(), second])
    prediction[:2, 2] = -1.0
    target = torch.tensor([[1, 0, 0, NAN], [NAN, 1, 0, NAN], [1, 1, NAN, NAN], [0, 0, 0, NAN]])
    everything = torch.ones(2).bool()
    scores = evaluate(task, (prediction[:2], target[:2], everything), (prediction[2:], target[2:], everything))
    assert set(scores) == {"accuracy", "f1", "auroc", "ece", "reliability", "count"}
    assert scores["count"] == 3 + 4 + 3
    # a: yes→yes, yes→no, no→yes; b: no→yes, yes→yes, yes→no, no→no; never: three times no→no.
    assert scores["accuracy"] == pytest.approx((1 + 2 + 3) / 10)
    assert scores["f1"] == pytest.approx((2 / 4 + 2 / 4) / 2)
    # a: positives 0.2, -1 against 2; b: positives 0.3, -2 against 0.1, -5.
    assert scores["auroc"] == pytest.approx((0 + 3 / 4) / 2)


def test_a_label_without_a_positive_has_no_part_in_the_means():
    task = MultiLabel(["a"])
    scores = evaluate(task, (torch.tensor([[-1.0], [-2.0]]), torch.zeros(2, 1), torch.ones(2).bool()))
    assert set(scores) == {"accuracy", "ece", "reliability", "count"} and scores["accuracy"] == 1
    scores = evaluate(task, (torch.tensor([[-1.0], [2.0]]), torch.zeros(2, 1), torch.ones(2).bool()))
    assert scores["f1"] == 0


def test_regression_scores_by_hand_in_real_units():
    task = Regression(["a", "b"], mean=[10.0, 0.0], std=[2.0, 5.0], unit="kg")
    task.learn([torch.tensor([9.0, 1.0])])
    target = torch.tensor([[10.0, 5.0], [12.0, NAN], [14.0, 5.0], [99.0, 99.0]])
    prediction = torch.tensor([[0.5, 1.0], [1.0, 7.0], [1.0, 0.0], [0.0, 0.0]])
    labelled = torch.tensor([True, True, True, False])
    scores = evaluate(task, (prediction, target, labelled))
    # Errors of a: 11-10, 12-12, 12-14; of b: 5-5, 0-5.
    assert scores["count"] == 5 and scores["mae"] == pytest.approx((1 + 0 + 2 + 0 + 5) / 5)
    assert scores["rmse"] == pytest.approx(math.sqrt((1 + 4 + 25) / 5))
    # a varies by 4 + 0 + 4 around its mean 12, b does not vary.
    assert scores["r2"] == pytest.approx(1 - (1 + 4) / 8)
    assert list(task.measures) == ["rmse", "mae", "r2"] and task.measures["rmse"] == (False, 0.0, "kg")
    assert list(Regression(["a"], loss="huber").measures) == ["mae", "rmse", "r2"]


def test_r2_is_left_out_where_nothing_varies():
    task = Regression(["a"])
    task.learn(torch.tensor([[0.1], [0.7]]))
    assert "r2" not in evaluate(task, (torch.zeros(1, 1), torch.tensor([[3.3]]), torch.ones(1).bool()))
    batch = (torch.zeros(7, 1), torch.full((7, 1), 0.3), torch.ones(7).bool())
    assert set(evaluate(task, *[batch] * 50)) == {"mae", "rmse", "count"}


def test_r2_survives_numbers_far_from_zero():
    generator = torch.Generator().manual_seed(3)
    target = 1e6 + torch.randn(500, 1, generator=generator)
    task = Regression(["a"], mean=0.0, std=1.0)
    task.learn(target)
    prediction = target + 0.5
    truth = target.double().numpy()
    expected = 1 - 500 * 0.25 / ((truth - truth.mean()) ** 2).sum()
    scores = evaluate(task, *[(prediction[i : i + 50], target[i : i + 50], torch.ones(50).bool()) for i in range(0, 500, 50)])
    assert float(scores["r2"]) == pytest.approx(expected, rel=1e-5)


@every_task
def test_metrics_do_not_depend_on_how_rows_are_spread(task):
    prediction, target = draw_targets(task)
    whole = evaluate(task, (prediction, target, LABELLED))
    # A piece without any label is among them.
    pieces = evaluate(task, *[(prediction[i : i + 1], target[i : i + 1], LABELLED[i : i + 1]) for i in range(ROWS)])
    left, right = task.metrics(), task.metrics()
    task.update(left, prediction[:2], target[:2], LABELLED[:2])
    task.update(right, prediction[2:], target[2:], LABELLED[2:])
    left["scores"].merge_state(right["scores"])
    for other in (pieces, left.compute()):
        assert set(other) == set(whole)
        for key, value in whole.items():
            torch.testing.assert_close(other[key], value)
    assert set(task.measures) | {"count"} == set(whole) - {"confusion", "reliability", "histogram"}
    assert next(iter(task.measures)) in whole


@every_task
def test_a_split_without_labels_has_a_count_of_zero_alone(task):
    prediction, target = draw_targets(task)
    metrics = task.metrics()
    task.update(metrics, prediction, target, torch.zeros(ROWS).bool())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns of a compute without an update
        assert {key: int(value) for key, value in metrics.compute().items()} == {"count": 0}


def test_predictions_that_are_no_numbers_do_not_stop_the_metrics():
    for make in TASKS.values():
        task = make()
        _, target = draw_targets(task)
        scores = evaluate(task, (torch.full((ROWS, SIZE), NAN), target, LABELLED))
        assert scores["count"] > 0
        # An error that is no number must not pass for none.
        assert "mae" not in scores or scores["mae"].isnan()


# --- checks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(["a", "b"], [1.0, 2.0, 3.0]), "class_weights has 3 numbers.*2 classes"),
        (lambda: Classification(["a", "b"], [1.0, -2.0]), "class_weights"),
        (lambda: Classification(["a", "a"]), "each once"),
        (lambda: Classification(label_smoothing=1.0), "label_smoothing"),
        (lambda: Classification().channels, "does not know its classes"),
        (lambda: MultiLabel([]), "labels"),
        (lambda: MultiLabel().channels, "does not know its labels"),
        (lambda: Regression(["a"], delta=0.0), "delta"),
        (lambda: Regression(["a"], std=0.0), "std"),
        (lambda: Regression(std=[1.0, -1.0]), "std"),
        (lambda: Regression(["a"], mean=[1.0, 2.0]), "mean has 2"),
        (lambda: Regression(["a"], loss="mae"), "mse, l1 or huber"),
        (lambda: Regression().channels, "does not know its numbers"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_settings_are_checked_when_the_names_come_later():
    task = Classification(class_weights=[1.0, 2.0])
    task.names = ["a", "b", "c"]
    with pytest.raises(ConfigError, match="class_weights has 2 numbers"):
        _ = task.channels
    task = Regression(std=[1.0, 2.0])
    task.names = ["a"]
    with pytest.raises(ConfigError, match="std has 2 numbers"):
        task.learn(torch.zeros(3, 1))
    with pytest.raises(DataError, match="no label"):
        Regression(["a"]).learn([])


@pytest.mark.parametrize(
    ("task", "good", "bad", "message"),
    [
        (Classification(["a", "b"]), torch.tensor(1), torch.tensor(2), r"class index 2, expected 0 to 1 \(a, b\)"),
        (Classification(["a", "b"]), torch.tensor(0), torch.tensor(-1), "class index -1"),
        (Classification(["a", "b"]), torch.tensor(0), torch.tensor(0.5), "one class index"),
        (Classification(["a", "b"]), torch.tensor(0), torch.tensor([0]), "one class index"),
        (MultiLabel(["a", "b"]), torch.tensor([1, NAN]), torch.tensor([1, 0.5]), "'b' is 0.5"),
        (MultiLabel(["a", "b"]), torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0]), "'a' is -1"),
        (MultiLabel(["a", "b"]), torch.tensor([1.0, 0.0]), torch.tensor([NAN, NAN]), "no label is known"),
        (MultiLabel(["a", "b"]), torch.tensor([1.0, 0.0]), torch.tensor([1.0]), "shape"),
        (Regression(["a", "b"]), torch.tensor([1.0, NAN]), torch.tensor([NAN, -math.inf]), "'b' is infinite"),
        (Regression(["a", "b"]), torch.tensor([1.0, NAN]), torch.tensor([NAN, NAN]), "no number is known"),
        (Regression(["a"]), torch.tensor([1.0]), torch.tensor(1.0), "shape"),
    ],
)
def test_bad_labels_are_refused_with_row_and_task(task, good, bad, message):
    task.name = "breed"
    task.check(good, "labels.csv row 3")
    with pytest.raises(DataError, match=rf"labels\.csv row 3, task 'breed': .*{message}"):
        task.check(bad, "labels.csv row 3")


# --- heads, configuration, people -----------------------------------------------------------------------------------------


@every_task
def test_the_default_head_fits_the_target(task):
    head = task.build_head([FeatureSpec(4, 8), FeatureSpec(6, 16)])
    output = head([Features(torch.randn(2, 4, 4, 4)), Features(torch.randn(2, 6, 2, 2))], (32, 32))
    assert output.shape == (2, task.channels)
    assert task.target.shape in ((), (task.channels,)) and not task.target.dense
    mean_loss(task, output, torch.zeros(2, *task.target.shape, dtype=task.target.dtype), torch.ones(2).bool()).backward()


def test_configuration_by_class_path():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=Task)
    path = "mtl_lightning.tasks.regression.Regression"
    config = parser.parse_object({"task": {"class_path": path, "init_args": {"names": ["a", "b"], "mean": 3, "std": [1, 2]}}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse renames this from 4.49 on
        task = parser.instantiate_classes(config).task
    task.learn(torch.zeros(1, 2))
    assert task.facts()["mean"] == [3, 3] and task.facts()["std"] == [1, 2]


def test_decoding_for_people():
    assert Classification(["cat", "dog"]).decode(torch.tensor([[0.0, 1.0], [3.0, 1.0]])) == ["dog", "cat"]
    assert MultiLabel(["sky", "sea"]).decode(torch.tensor([[0.0, -1.0], [1, 1], [-1, -1]])) == [["sky"], ["sky", "sea"], []]
    one, two = Regression(["age"], mean=30.0, std=10.0), Regression(["a", "b"], mean=30.0, std=[10.0, 1.0])
    one.learn(torch.zeros(1, 1))
    two.learn(torch.zeros(1, 2))
    assert one.decode(torch.tensor([[0.5], [1.0]])) == [35.0, 40.0]
    assert two.decode(torch.tensor([[0.5, 1.0]])) == [[35.0, 31.0]]


def drawn(task, prediction, target):
    axes = Figure().subplots()
    task.draw(axes, torch.rand(3, 20, 40), prediction, target)
    return axes


def words(axes):
    return [(text.get_text(), to_hex(text.get_color())) for text in axes.texts]


def test_a_class_is_green_where_right_and_red_where_wrong():
    task = Classification(["siamese", "birman"])
    task.name = "breed"
    prediction = torch.tensor([math.log(0.87), math.log(0.13)])
    assert words(drawn(task, prediction, torch.tensor(0))) == [("siamese\n87 %", RIGHT)]
    assert words(drawn(task, prediction, torch.tensor(1))) == [("siamese\n87 %", WRONG)]
    assert words(drawn(task, prediction, None)) == [("siamese\n87 %", "#000000")]
    assert words(drawn(task, None, torch.tensor(1))) == [("birman", "#000000")]
    assert words(drawn(task, None, None))[0][0] == "no label"


def test_labels_are_judged_by_the_known_ones():
    task = MultiLabel(["sky", "sea", "tree"])
    prediction = torch.tensor([2.0, -1.0, 1.0])
    assert words(drawn(task, prediction, torch.tensor([1, 0, NAN]))) == [("sky", RIGHT), ("tree?", GREY)]
    assert words(drawn(task, prediction, torch.tensor([0, 0, NAN]))) == [("sky", WRONG), ("tree?", GREY)]
    assert words(drawn(task, None, torch.tensor([0, 1, NAN]))) == [("sea", "#000000"), ("tree?", GREY)]
    assert words(drawn(task, None, torch.tensor([NAN, 0, 0]))) == [("none", "#000000"), ("sky?", GREY)]
    assert words(drawn(task, torch.tensor([-1.0, -1, -1]), torch.tensor([0, 0, NAN]))) == [("none", RIGHT)]
    assert words(drawn(task, None, None))[0][0] == "no label"


def test_numbers_are_written_and_boxes_drawn():
    task = Regression(["age"], mean=30.0, std=10.0, unit="years")
    task.learn(torch.zeros(1, 1))
    assert words(drawn(task, torch.tensor([0.12]), torch.tensor([30.0])))[0][0] == "31.2 years"
    assert words(drawn(task, None, torch.tensor([30.0])))[0][0] == "30 years"
    assert words(drawn(task, None, None))[0][0] == "no label"
    box = Regression(["x0", "y0", "x1", "y1"], mean=0.0, std=1.0)
    box.learn(torch.zeros(1, 4))
    patches = drawn(box, torch.tensor([0.25, 0.5, 0.75, 1.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])).patches
    assert [patch.get_linestyle() for patch in patches] == ["--", "-"]
    assert patches[1].get_xy() == (9.5, 9.5) and (patches[1].get_width(), patches[1].get_height()) == (20, 10)
    assert len(drawn(box, None, torch.tensor([0.0, 0.0, 1.0, 1.0])).patches) == 1


@pytest.mark.parametrize(("classes", "numbered"), [(2, True), (13, False), (50, False)])
def test_the_confusion_picture_is_normalised_by_the_truth(classes, numbered):
    task = Classification([f"c{index}" for index in range(classes)])
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    confusion[0, :2] = torch.tensor([1, 3])
    axes = Figure().subplots()
    assert not task.plots({})
    task.plots({"confusion": confusion})["confusion"](axes)
    shown = axes.images[0].get_array()
    assert shown[0, :2].tolist() == [0.25, 0.75] and shown[1].sum() == 0
    assert [text.get_text() for text in axes.texts][:2] == (["0.25", "0.75"] if numbered else [])
