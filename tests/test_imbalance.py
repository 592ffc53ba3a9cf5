"""Balanced weights, focal loss, calibration, top-k and thresholds, by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_lightning.errors import CheckpointError, ConfigError
from mtl_lightning.metrics.auroc import BINS, edges, histogram
from mtl_lightning.metrics.calibration import calibration_error, reliability
from mtl_lightning.metrics.decisions import mean_f1, mean_iou, outcomes, positive_f1
from mtl_lightning.tasks import Classification, MultiLabel, SemanticSegmentation, Task
from mtl_lightning.tasks.charts import reliability_diagram
from mtl_lightning.tasks.thresholds import Thresholds

NAN = float("nan")


def loss_of(task: Task, prediction: Tensor, target: Tensor, labelled: Tensor | None = None) -> Tensor:
    labelled = torch.ones(len(target), dtype=torch.bool) if labelled is None else labelled
    (term,) = task.loss(prediction, target, labelled).values()
    return term.total / term.denominator


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evaluate(task: Task, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    metrics = task.metrics()
    task.update(metrics, prediction, target, torch.ones(len(target), dtype=torch.bool))
    return dict(metrics.compute())


# --- balanced weights -----------------------------------------------------------------------------------------------------


def test_balanced_class_weights_are_of_the_training_labels() -> None:
    task = Classification(["a", "b", "never", "c"], "balanced")
    with pytest.raises(RuntimeError, match=r"learn\(\)"):
        loss_of(task, draw(2, 4), torch.tensor([0, 1]))
    task.learn(torch.tensor([0] * 6 + [1] * 3 + [3]))
    # n / (C * n_c), and for the class without a label the largest of them.
    expected = torch.tensor([10 / 24, 10 / 12, 10 / 4, 10 / 4])
    assert task.class_weights is not None and torch.allclose(task.class_weights, expected)
    prediction, target = draw(7, 4), torch.tensor([0, 1, 3, 3, 0, 1, 1])
    torch.testing.assert_close(loss_of(task, prediction, target), F.cross_entropy(prediction, target, expected.double()))
    labelled = torch.tensor([True, False, True, True, False, True, True])
    assert task.loss(prediction, target, labelled)["loss"].denominator == pytest.approx(float(expected[target][labelled].sum()))


def test_every_class_has_the_same_mass_in_the_training_split() -> None:
    labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 3)
    task = Classification(["a", "b", "c"], "balanced")
    task.learn(labels)
    assert task.class_weights is not None
    mass = torch.zeros(3).index_add_(0, labels, task.class_weights[labels])
    assert mass.tolist() == pytest.approx([20, 20, 20])


def test_balanced_pixels() -> None:
    mask = torch.tensor([[0] * 7 + [1], [0, 0, -1, -1, -1, -1, -1, -1]])
    for loss, size in (("ce", 2), ("bce", 1)):
        task = SemanticSegmentation(["ground", "blob"], loss, "balanced")  # type: ignore[arg-type]
        task.learn([mask])
        assert task.class_weights is not None and task.class_weights.tolist() == pytest.approx([10 / 18, 10 / 2])
        prediction, target = draw(2, size, 2, 8), torch.stack([mask, mask])
        two = prediction if size == 2 else torch.cat([torch.zeros_like(prediction), prediction], 1)
        expected = F.cross_entropy(two, target, task.class_weights.double(), ignore_index=-1)
        torch.testing.assert_close(loss_of(task, prediction, target), expected)


def test_pos_weight_is_torchs_and_balanced_is_negatives_over_positives() -> None:
    task = MultiLabel(["a", "b", "always", "never", "unknown"], "balanced")
    rows = [[1, 0, 1, 0, NAN], [0, 1, 1, 0, NAN], [0, NAN, 1, 0, NAN], [0, 1, 1, 0, NAN]]
    task.learn([torch.tensor(row) for row in rows])
    assert task.pos_weight is not None and task.pos_weight.tolist() == pytest.approx([3, 0.5, 0.01, 100, 1])
    weights, prediction = [3.0, 0.5, 2.0, 1.0, 0.0], draw(4, 5)
    target = torch.tensor(rows).nan_to_num(0.0).double()
    expected = F.binary_cross_entropy_with_logits(prediction, target, pos_weight=torch.tensor(weights).double())
    given = MultiLabel(["a", "b", "c", "d", "e"], weights)
    torch.testing.assert_close(loss_of(given, prediction, target), expected)


@pytest.mark.parametrize(
    ("make", "buffer"),
    [
        (lambda weights: Classification(["a", "b", "c"], weights), "class_weights"),
        (lambda weights: MultiLabel(["a", "b", "c"], weights), "pos_weight"),
        (lambda weights: SemanticSegmentation(["a", "b", "c"], class_weights=weights), "class_weights"),
    ],
)
def test_learnt_weights_are_the_checkpoints_and_given_ones_the_configurations(make, buffer) -> None:  # type: ignore[no-untyped-def]
    one, other = make("balanced"), make("balanced")
    few = [torch.tensor(0), torch.tensor(1), torch.tensor(1)]
    many = [torch.tensor(2), torch.tensor(1), torch.tensor(1), torch.tensor(1)]
    if buffer == "pos_weight":
        few, many = ([F.one_hot(label, 3).float() for label in labels] for labels in (few, many))
    one.learn(few)
    other.learn(many)
    assert not torch.equal(getattr(one, buffer), getattr(other, buffer))
    other.load_state_dict(one.state_dict())
    assert torch.equal(getattr(one, buffer), getattr(other, buffer))
    given = make([1.0, 2.0, 4.0])
    given.load_state_dict(one.state_dict())
    assert getattr(given, buffer).tolist() == [1, 2, 4]
    none = make(None)
    none.load_state_dict(one.state_dict())
    assert getattr(none, buffer) is None and "weight" not in str(given.facts())


# --- focal loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_by_hand(gamma: float) -> None:
    weights = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    prediction, target = draw(6, 3), torch.tensor([0, 1, 2, 2, 0, 1])
    p = prediction.softmax(1)[torch.arange(6), target]
    each = -((1 - p) ** gamma) * p.log()
    torch.testing.assert_close(loss_of(Classification(["a", "b", "c"], focal_gamma=gamma), prediction, target), each.mean())
    weighted = (each * weights[target]).sum() / weights[target].sum()
    task: Task = Classification(["a", "b", "c"], weights.tolist(), focal_gamma=gamma)
    torch.testing.assert_close(loss_of(task, prediction, target), weighted)
    task = SemanticSegmentation(["a", "b", "c"], class_weights=weights.tolist(), focal_gamma=gamma)
    torch.testing.assert_close(loss_of(task, prediction.view(6, 3, 1, 1), target.view(6, 1, 1)), weighted)

    truth = torch.tensor([[1, 0, NAN], [0, 0, 1], [1, 1, 0], [NAN, 0, 0], [1, NAN, 1], [0, 1, 0]], dtype=torch.float64)
    known = ~truth.isnan()
    p = torch.where(truth == 1, prediction.sigmoid(), 1 - prediction.sigmoid())
    factor = torch.where(truth == 1, weights, 1.0)
    each = (-factor * (1 - p) ** gamma * p.log())[known]
    task = MultiLabel(["a", "b", "c"], weights.tolist(), focal_gamma=gamma)
    torch.testing.assert_close(loss_of(task, prediction, truth), each.mean())


def test_without_an_exponent_it_is_the_cross_entropy_to_the_last_bit() -> None:
    prediction, target = draw(6, 3).float(), torch.tensor([0, 1, 2, 2, 0, 1])
    assert loss_of(Classification(["a", "b", "c"]), prediction, target) == F.cross_entropy(prediction, target)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("size", [0.0, 10.0, 200.0, 1e6])
def test_focal_gradients_are_finite_however_sure_the_network_is(gamma: float, size: float) -> None:
    target = torch.tensor([0, 1])
    for task, truth in (
        (Classification(["a", "b"], focal_gamma=gamma), target),
        (MultiLabel(["a", "b"], focal_gamma=gamma), F.one_hot(target).float()),
    ):
        for sign in (-size, size):
            prediction = (sign * F.one_hot(target).float()).requires_grad_()
            loss_of(task, prediction, truth).backward()
            assert prediction.grad is not None and prediction.grad.isfinite().all()


# --- calibration and top-k ------------------------------------------------------------------------------------------------


def test_calibration_error_by_hand() -> None:
    # Bins are (l, u] of 1/15: 0.8 is in the bin that ends there, 0.81 in the next.
    probability = torch.tensor([0.8, 0.79, 0.81, 0.05, 0.05, 1.0, 0.0], dtype=torch.float64)
    hit = torch.tensor([True, False, True, False, True, True, False])
    table = reliability(probability, hit)
    assert table[0].nonzero().flatten().tolist() == [0, 11, 12, 14]
    expected = (abs(1 - 1.59) + abs(1 - 0.81) + abs(1 - 0.1) + 0) / 7
    assert calibration_error(table) == pytest.approx(expected)
    parts = [reliability(probability[part], hit[part]) for part in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(parts[0] + parts[1], table)


def test_calibration_of_tasks_against_numpy() -> None:
    random = torch.Generator().manual_seed(3)
    prediction, target = 2 * torch.randn(500, 4, generator=random), torch.randint(4, (500,), generator=random)

    def ece(confidence: np.ndarray, hit: np.ndarray) -> float:
        bins = np.digitize(confidence, np.linspace(0, 1, 16)[1:-1], right=True)
        return sum(abs(hit[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist()))

    confidence, guess = prediction.double().softmax(1).max(1)
    scores = evaluate(Classification([*"abcd"]), prediction, target)
    assert float(scores["ece"]) == pytest.approx(ece(confidence.numpy(), (guess == target).numpy().astype(float)), abs=1e-6)
    truth = (torch.rand(500, 4, generator=random) < 0.2).float()
    truth[::7, 1] = NAN
    known = ~truth.isnan()
    scores = evaluate(MultiLabel([*"abcd"]), prediction, truth)
    expected = ece(prediction.double().sigmoid()[known].numpy(), truth[known].double().numpy())
    assert float(scores["ece"]) == pytest.approx(expected, abs=1e-6) and scores["reliability"][0].sum() == known.sum()


def test_the_trivial_predictor_of_equal_splits_is_calibrated() -> None:
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 100)
    task = Classification(["a", "b", "c"], top_k=[2])
    task.learn(labels)
    metrics = task.metrics()
    task.update_trivial(metrics, labels, torch.ones(1000, dtype=torch.bool))
    scores = metrics.compute()
    assert float(scores["ece"]) == pytest.approx(0, abs=2e-3) and scores["accuracy_top2"] == pytest.approx(0.9)


def test_top_k() -> None:
    task = Classification([*"abcde"], top_k=[3, 2])
    prediction = torch.tensor([[5.0, 4, 3, 2, 1]]).expand(4, -1)
    scores = evaluate(task, prediction, torch.tensor([0, 1, 2, 3]))
    assert [float(scores[key]) for key in ("accuracy", "accuracy_top2", "accuracy_top3")] == [0.25, 0.5, 0.75]
    assert list(task.measures) == ["accuracy", "f1", "accuracy_top2", "accuracy_top3", "auroc", "ece"]
    assert "accuracy_top3" in task.keys() and not task.measures["ece"].higher_is_better  # noqa: SIM118 - no dict


def test_the_diagram_has_a_bar_per_bin_that_holds_something() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    reliability_diagram(reliability(torch.tensor([0.1, 0.9, 0.92]).double(), torch.tensor([False, True, False])), "share", axes)
    assert [bar.get_height() for bar in axes.patches] == [0, 0.5]


# --- thresholds -----------------------------------------------------------------------------------------------------------


def brute_force(log_odds: Tensor, truth: Tensor, score) -> float:  # type: ignore[no-untyped-def]
    def table(cut: float) -> Tensor:
        decided = log_odds >= cut
        return torch.tensor([[int(((truth == t) & (decided == d)).sum()) for d in (False, True)] for t in (0, 1)])

    return max(float(score(table(cut))) for cut in [*(log_odds.double() - 1e-4).tolist(), 600.0])


@pytest.mark.parametrize("objective", [positive_f1, mean_f1, mean_iou])
def test_the_chosen_threshold_is_as_good_as_any(objective) -> None:  # type: ignore[no-untyped-def]
    random = torch.Generator().manual_seed(1)
    truth = (torch.rand(200, 5, generator=random) < torch.tensor([0.02, 0.1, 0.3, 0.6, 0.9])).float()
    truth[::9] = NAN
    log_odds = torch.randn(200, 5, generator=random) + truth.nan_to_num(0) + torch.tensor([-4.0, 2, 0, 1, 3])
    decisions = Thresholds("validation")
    assert decisions.untuned and torch.equal(decisions(log_odds), log_odds >= 0)
    table = decisions.choose(histogram(log_odds, truth), objective)
    assert not decisions.untuned and decisions.chosen is not None
    decided = decisions(log_odds)
    for column in range(5):
        counts = [[int(((truth[:, column] == t) & (decided[:, column] == d)).sum()) for d in (False, True)] for t in (0, 1)]
        assert table[..., column].tolist() == counts
        best = brute_force(log_odds[:, column], truth[:, column], objective)
        # Scores in one bin, 0.007 wide, cannot be parted.
        assert best - 0.02 <= float(objective(table[..., column])) <= best + 1e-9


def test_outcomes_at_every_edge() -> None:
    counts = torch.zeros(2, 1, BINS, dtype=torch.long)
    counts[0, 0, 5], counts[1, 0, 9] = 3, 2
    table = outcomes(counts)[:, :, 0]
    assert table[..., 0].tolist() == [[0, 3], [0, 2]] and table[..., 5].tolist() == [[0, 3], [0, 2]]
    assert table[..., 6].tolist() == [[3, 0], [0, 2]] and table[..., 10].tolist() == [[3, 0], [2, 0]]
    assert edges()[BINS // 2] == 0


def test_between_two_scores_it_is_in_the_middle_and_without_choice_one_half() -> None:
    log_odds = torch.tensor([[-3.0, 1.0, 1.0], [-1.0, 2.0, 2.0]])
    truth = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    decisions = Thresholds("validation")
    decisions.choose(histogram(log_odds, truth), positive_f1)
    assert decisions.chosen is not None
    middle = math.sinh((math.asinh(-3) + math.asinh(-1)) / 2)
    assert decisions.chosen.tolist() == pytest.approx([middle, 0, 0], abs=0.02)
    assert decisions.probabilities(["a", "b", "c"])["b"] == 0.5


def tuned(task: Task, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    return dict(task.tune(evaluate(task, prediction, target)))


def test_multilabel_thresholds_decide_everywhere() -> None:
    task = MultiLabel(["a", "b"], threshold="validation")
    prediction = torch.tensor([[-3.0, 3.0], [-2.0, 2.0], [-1.0, 1.0], [-4.0, 4.0]])
    target = torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, 1]])
    assert task.untuned and not task.thresholds() and task.decode(prediction)[1] == ["b"]
    assert evaluate(task, prediction, target)["f1"] == pytest.approx((0 + 4 / 6) / 2)
    scores = tuned(task, prediction, target)
    assert scores["f1"] == 1 and scores["accuracy"] == 1 and not task.untuned
    assert task.decode(prediction) == [["b"], ["a"], ["a"], ["b"]]
    assert evaluate(task, prediction, target)["f1"] == 1
    assert 0.05 < task.thresholds()["a"] < 0.11 and next(iter(task.measures)) == "f1"
    other = MultiLabel(["a", "b"], threshold="validation")
    other.load_state_dict(task.state_dict())
    assert not other.untuned and other.decode(prediction) == task.decode(prediction)
    plain = MultiLabel(["a", "b"])
    plain.load_state_dict(task.state_dict())
    assert plain.decode(prediction)[1] == ["b"] and "thresholds" not in plain.facts()
    fresh = MultiLabel(["a", "b"], threshold="validation")
    fresh.load_state_dict(plain.state_dict())
    assert fresh.untuned
    with pytest.raises(CheckpointError, match="3 thresholds, expected 2"):
        fresh.restore(task.facts() | {"thresholds": [0.0, 1.0, 2.0]})


def test_a_binary_class_is_decided_by_its_threshold() -> None:
    task = Classification(["no", "yes"], threshold="validation")
    task.name = "ill"
    prediction = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [5.0, 0.0], [6.0, 0.0]])
    target = torch.tensor([0, 1, 1, 0, 0])
    assert evaluate(task, prediction, target)["f1"] == pytest.approx((6 / 8 + 0) / 2)
    scores = tuned(task, prediction, target)
    assert scores["f1"] == 1 and scores["confusion"].tolist() == [[3, 0], [0, 2]]
    assert task.decode(prediction) == ["no", "yes", "yes", "no", "no"] and list(task.thresholds()) == ["yes"]
    assert next(iter(task.measures)) == "f1"
    fixed = Classification(["no", "yes"], threshold=0.1)
    assert fixed.decode(prediction) == ["no", "yes", "yes", "no", "no"] and not fixed.thresholds() and not fixed.untuned


def test_a_binary_mask_is_decided_by_its_threshold() -> None:
    task = SemanticSegmentation(["ground", "blob"], "bce", threshold="validation")
    prediction = torch.tensor([-3.0, -2.0, -1.0, -4.0]).view(1, 1, 2, 2)
    target = torch.tensor([[[0, 1], [1, -1]]])
    assert evaluate(task, prediction, target)["miou"] < 0.5
    scores = tuned(task, prediction, target)
    assert scores["miou"] == scores["pixel_accuracy"] == scores["iou_blob"] == 1
    assert task.decode(prediction)[0].tolist() == [[0, 1], [1, 0]] and list(task.thresholds()) == ["blob"]


def test_trivial_predictors_decide_for_themselves() -> None:
    everything = torch.ones(4, dtype=torch.bool)
    labels = torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 1]])
    for threshold, expected in (("validation", (2 / 5 + 4 / 6) / 2), (0.5, 0.0)):
        task: Task = MultiLabel(["a", "b"], threshold=threshold)
        task.learn([torch.tensor([0.0, 0.0])] * 3)
        tuned(task, torch.tensor([[-300.0, -300], [-400, -400], [-400, -300], [-400, -300]]), labels)
        metrics = task.metrics()
        task.update_trivial(metrics, labels, everything)
        assert float(metrics.compute().get("f1", 0.0)) == pytest.approx(expected)
    target = torch.tensor([0, 0, 0, 1])
    task = Classification(["no", "yes"], threshold="validation")
    task.learn(target)
    tuned(task, torch.tensor([[9.0, 0], [9, 0], [9, 0], [8, 0]]), target)
    metrics = task.metrics()
    task.update_trivial(metrics, target, everything)
    assert metrics.compute()["confusion"].tolist() == [[3, 0], [1, 0]]


def test_histograms_of_ranks_add_up() -> None:
    prediction, target = draw(40, 2).float(), (draw(40, 2, seed=1) > 0.5).float()
    for task, truth in (
        (MultiLabel(["a", "b"], threshold="validation"), target),
        (Classification(["a", "b"], threshold="validation"), target[:, 0].long()),
    ):
        whole, left, right = task.metrics(), task.metrics(), task.metrics()
        for metrics, rows in ((whole, slice(0, 40)), (left, slice(0, 13)), (right, slice(13, 40))):
            task.update(metrics, prediction[rows], truth[rows], torch.ones(len(truth[rows]), dtype=torch.bool))
        left["scores"].merge_state(right["scores"])  # type: ignore[operator]
        first = task.tune(whole.compute())
        chosen = task.thresholds()
        second = task.tune(left.compute())
        assert task.thresholds() == chosen
        for key, value in first.items():
            torch.testing.assert_close(second[key], value)


# --- settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(["a", "b"], focal_gamma=-1.0), "focal_gamma is -1.0"),
        (lambda: Classification(["a", "b"], focal_gamma=2.0, label_smoothing=0.1), "do not go together"),
        (lambda: Classification(["a", "b"], top_k=[1]), "2 and more"),
        (lambda: Classification(["a", "b", "c"], top_k=[5]), r"top_k \[5\]: expected less than the number of classes, 3"),
        (
            lambda: Classification(["a", "b", "c"], threshold="validation"),
            "threshold: it decides between 2 classes, and .* has 3",
        ),
        (lambda: Classification(["a", "b", "c"], threshold=0.3), "threshold: it decides between 2 classes, and .* has 3"),
        (lambda: Classification(["a", "b"], threshold=0.0), "threshold is 0.0"),
        (lambda: MultiLabel(["a"], threshold="best"), "threshold is best"),  # type: ignore[arg-type]
        (lambda: MultiLabel(["a"], [1.0, 2.0]), "pos_weight has 2 numbers, expected one for each of the 1 labels"),
        (lambda: MultiLabel(["a"], [-1.0]), "pos_weight"),
        (lambda: MultiLabel(["a"], focal_gamma=NAN), "focal_gamma is nan"),
    ],
)
def test_wrong_settings_are_refused(make, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        make()
