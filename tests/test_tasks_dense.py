"""Segmentation, depth and surface normals: losses by hand, masks that hold, metrics against numpy, pictures."""

import math

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from mtl_lightning.batch import IGNORE
from mtl_lightning.errors import CheckpointError, ConfigError, DataError
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.heads import FCN, Linear
from mtl_lightning.metrics.normals import angle
from mtl_lightning.tasks.base import MaskedLoss, Task
from mtl_lightning.tasks.depth import Depth
from mtl_lightning.tasks.normals import SurfaceNormals
from mtl_lightning.tasks.painting import palette
from mtl_lightning.tasks.segmentation import SemanticSegmentation

matplotlib.use("Agg")

CLASSES = ["road", "a car", "sky"]
B, H, W = 4, 6, 5


def balanced(task: SemanticSegmentation) -> SemanticSegmentation:
    """With weights learnt from some masks."""
    task.learn([torch.tensor([[0, 0, 0, 1], [0, 2, 2, 1]])])
    return task


TASKS = {
    "ce": lambda: SemanticSegmentation(CLASSES),
    "ce weighted": lambda: SemanticSegmentation(CLASSES, class_weights=[1.0, 3.0, 0.5]),
    "ce balanced focal": lambda: balanced(SemanticSegmentation(CLASSES, class_weights="balanced", focal_gamma=2.0)),
    "bce tuned": lambda: SemanticSegmentation(CLASSES[:2], loss="bce", threshold="validation", focal_gamma=0.5),
    "dice": lambda: SemanticSegmentation(CLASSES, loss="dice"),
    "ce+dice": lambda: SemanticSegmentation(CLASSES, loss="ce+dice"),
    "bce": lambda: SemanticSegmentation(CLASSES[:2], loss="bce", class_weights=[1.0, 2.0]),
    "l1": lambda: Depth(),
    "l1 capped": lambda: Depth(maximum=4.0),
    "silog": lambda: Depth("silog"),
    "berhu": lambda: Depth("berhu"),
    "normals": lambda: SurfaceNormals(),
}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return TASKS[request.param]()


def some_target(task: Task, seed: int = 0, rows: int = B) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if task.kind == "mask":
        return torch.randint(-1, len(task.names or []), (rows, H, W), generator=generator)
    if task.kind == "depth":
        target = torch.rand(rows, 1, H, W, generator=generator) * 6 - 1
        target[:, :, 0, 0] = math.nan
        return target
    target = F.normalize(torch.randn(rows, 3, H, W, generator=generator), dim=1)
    target[..., 0] = 0
    target[..., 1, 1] = math.nan
    return target


def some_prediction(task: Task, seed: int = 1, rows: int = B) -> Tensor:
    return torch.randn(rows, task.channels, H, W, generator=torch.Generator().manual_seed(seed))


def missing(task: Task, target: Tensor) -> Tensor:
    """Bool [B, H, W], written apart from the code under test."""
    if task.kind == "mask":
        return target == -1
    if task.kind == "depth":
        return ~((target > 0) & (target <= task.maximum))[:, 0]
    return ~(target.norm(dim=1) > 1e-6)


def value(terms: MaskedLoss) -> Tensor:
    return sum(term.coefficient * term.total / term.denominator.clamp_min(1e-12) for term in terms.values())


def masked(values: list[bool]) -> Tensor:
    return torch.tensor(values)


# ---- every task


def test_unlabelled_pixels_and_rows_have_no_gradient_and_change_nothing(task: Task) -> None:
    target, labelled = some_target(task), masked([True, False, True, True])
    prediction = some_prediction(task).requires_grad_()
    # Anomaly mode also sees a NaN on the way that a later step wipes out.
    with torch.autograd.set_detect_anomaly(True):
        value(task.loss(prediction, target, labelled)).backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all()
    out = missing(task, target) | ~labelled[:, None, None]
    gradient = prediction.grad.movedim(1, -1)
    assert out.any() and (gradient[out] == 0).all()
    assert (gradient[~out].abs().sum(-1) > 0).float().mean() > 0.9

    changed = torch.where(out.unsqueeze(1), torch.full_like(prediction, 1e4), prediction).detach().requires_grad_()
    fill = torch.full_like(target, -1 if task.kind == "mask" else 0)
    other_target = torch.where(out if task.kind == "mask" else out.unsqueeze(1), fill, target)
    for other in (task.loss(changed, other_target, labelled), task.loss(changed, target, labelled)):
        for name, term in task.loss(prediction, target, labelled).items():
            assert torch.equal(term.total, other[name].total) and torch.equal(term.denominator, other[name].denominator)


def test_nothing_labelled_is_an_exact_zero_on_the_graph(task: Task) -> None:
    target = some_target(task)
    nothing = torch.full_like(target, -1) if task.kind == "mask" else torch.full_like(target, math.nan)
    for each, labelled in ((target, torch.zeros(B, dtype=torch.bool)), (nothing, torch.ones(B, dtype=torch.bool))):
        prediction = some_prediction(task).requires_grad_()
        terms = task.loss(prediction, each, labelled)
        assert tuple(terms) == task.terms
        for term in terms.values():
            assert term.total.item() == 0 and term.denominator.item() == 0 and not term.denominator.requires_grad
            assert term.total.ndim == term.denominator.ndim == 0
        sum(term.total for term in terms.values()).backward()
        assert (prediction.grad == 0).all()
        assert len(task.elements(prediction, each, labelled)[1]) == 0


def test_totals_and_metrics_add_up_over_chunks(task: Task) -> None:
    target, prediction, labelled = some_target(task), some_prediction(task), masked([True, True, False, True])
    whole = task.loss(prediction, target, labelled)
    parts = [task.loss(prediction[part], target[part], labelled[part]) for part in (slice(0, 1), slice(1, 4))]
    for name, term in whole.items():
        torch.testing.assert_close(term.total, parts[0][name].total + parts[1][name].total)
        assert term.denominator == parts[0][name].denominator + parts[1][name].denominator
    once, twice = task.metrics(), task.metrics()
    task.update(once, prediction, target, labelled)
    for part in (slice(0, 1), slice(1, 3), slice(2, 3), slice(3, 4)):
        task.update(twice, prediction[part], target[part], labelled[part])
    # Row 2 is unlabelled, so that feeding it twice changes nothing.
    for key, result in once.compute().items():
        torch.testing.assert_close(twice.compute()[key], result)


def test_metric_keys_and_count(task: Task) -> None:
    target, prediction, labelled = some_target(task), some_prediction(task), torch.ones(B, dtype=torch.bool)
    metrics = task.metrics().clone(prefix="val/x/")
    task.update(metrics, prediction, target, labelled)
    results = metrics.compute()
    keys = {
        "mask": ["miou", "pixel_accuracy", "iou_road", "iou_a_car", "iou_sky"][: 5 if task.channels == 3 else 4],
        "depth": ["abs", "rel", "rmse", "delta1", "delta2", "delta3"],
        "normals": ["mean", "median", "within_11_25", "within_22_5", "within_30"],
    }[task.kind]
    assert sorted(results.keys() - {"val/x/histogram"}) == sorted("val/x/" + key for key in [*keys, "count"])
    assert set(task.measures) <= set(keys)


def test_count_is_of_labelled_pixels(task: Task) -> None:
    target, labelled = some_target(task), masked([True, False, True, True])
    metrics = task.metrics()
    task.update(metrics, some_prediction(task), target, labelled)
    assert metrics["count"].compute() == (~missing(task, target))[labelled].sum()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(task: Task, half: torch.dtype) -> None:
    target, labelled = some_target(task), torch.ones(B, dtype=torch.bool)
    prediction = some_prediction(task).to(half)
    for name, term in task.loss(prediction, target, labelled).items():
        assert term.total.dtype == torch.float32
        assert torch.equal(term.total, task.loss(prediction.float(), target, labelled)[name].total)


def test_extreme_predictions_have_finite_losses_and_gradients(task: Task) -> None:
    target, labelled = some_target(task), torch.ones(B, dtype=torch.bool)
    for factor in (0.0, 1e-30, 1e3):
        prediction = (some_prediction(task) * factor).requires_grad_()
        loss = value(task.loss(prediction, target, labelled))
        loss.backward()
        assert loss.isfinite() and prediction.grad.isfinite().all()


def test_gradient_descends(task: Task) -> None:
    target, labelled = some_target(task), masked([True, True, False, True])
    prediction = some_prediction(task).requires_grad_()
    before = value(task.loss(prediction, target, labelled))
    before.backward()
    step = 1e-3 / prediction.grad.norm()
    after = value(task.loss(prediction - step * prediction.grad, target, labelled))
    # First order: the decrease is the squared norm times the step (berHu's threshold moves too, without a gradient).
    expected = 1e-3 * prediction.grad.norm().item()
    assert (before - after).item() == pytest.approx(expected, rel=0.5 if "berhu" in task.terms else 0.05)


def test_learnt_facts_are_in_the_checkpoint(task: Task) -> None:
    target = some_target(task, rows=8)
    task.learn(iter(target))
    expected = task.trivial(target)
    assert expected.shape == (8, task.channels, H, W) and expected.isfinite().all()
    alike = [make() for make in TASKS.values() if type(make()) is type(task) and make().terms == task.terms]
    other = next(made for made in alike if made.facts().keys() == task.facts().keys())
    other.load_state_dict(task.state_dict())
    assert torch.equal(other.trivial(target), expected)
    assert task.facts() == other.facts()
    task.learn([])
    task.learn(iter(target))
    assert torch.equal(task.trivial(target), expected), "learning anew forgets what was before"


@pytest.mark.parametrize("name", ["ce", "l1", "l1 capped", "normals"])
def test_trivial_is_the_best_constant(name: str) -> None:
    task = TASKS[name]()
    target, labelled = some_target(task, rows=16), torch.ones(16, dtype=torch.bool)
    task.learn(iter(target))
    trivial = task.trivial(target)
    loss = value(task.loss(trivial, target, labelled))
    for seed in range(5):
        other = trivial + 0.3 * torch.randn(1, task.channels, 1, 1, generator=torch.Generator().manual_seed(seed))
        assert value(task.loss(other, target, labelled)) > loss


def test_the_default_head_answers_at_the_size_of_the_input(task: Task) -> None:
    head = task.build_head([FeatureSpec(4, 2), FeatureSpec(8, 4)])
    out = head([Features(torch.randn(2, 4, 8, 8)), Features(torch.randn(2, 8, 4, 4))], (16, 15))
    assert out.shape == (2, task.channels, 16, 15)


def test_another_head_is_injected() -> None:
    seen: list[tuple[list[FeatureSpec], int]] = []

    def factory(specs: list[FeatureSpec], channels: int) -> FCN:
        seen.append((specs, channels))
        return FCN(specs, channels)

    specs = [FeatureSpec(4)]
    assert isinstance(SurfaceNormals(head=factory).build_head(specs), FCN)  # type: ignore[arg-type]
    assert seen == [(specs, 3)]
    with pytest.raises(ConfigError, match="Linear predicts for each image, but SurfaceNormals"):
        SurfaceNormals(head=Linear).build_head(specs)


def test_pictures_of_everything_that_can_be_known(task: Task) -> None:
    target, prediction = some_target(task)[0], some_prediction(task)[0]
    image = torch.rand(3, H, W)
    axes = Figure().add_subplot()
    task.draw(axes, image, None, None)
    assert [text.get_text() for text in axes.texts] == ["no label"]
    for shown, truth in ((prediction, target), (prediction, None), (None, target)):
        axes = Figure().add_subplot()
        task.draw(axes, image, shown, truth)
        (picture,) = axes.get_images()
        colors = np.asarray(picture.get_array())
        assert colors.shape == (H, W, 3) and np.isfinite(colors).all() and colors.min() >= 0 and colors.max() <= 1
        if shown is None and truth is not None:
            gone = missing(task, target[None])[0].numpy()
            assert np.allclose(colors[gone], 0.6) and not np.allclose(colors[~gone], 0.6)


# ---- segmentation


def test_cross_entropy_is_torchs() -> None:
    prediction, target = some_prediction(TASKS["ce"]()), some_target(TASKS["ce"]())
    for weights in (None, [1.0, 3.0, 0.5]):
        ours = SemanticSegmentation(CLASSES, class_weights=weights).loss(prediction, target, torch.ones(B, dtype=torch.bool))
        theirs = F.cross_entropy(prediction, target, None if weights is None else torch.tensor(weights), ignore_index=IGNORE)
        assert value(ours).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_binary_is_the_cross_entropy_of_two_logits() -> None:
    target = some_target(TASKS["bce"]())
    logit = some_prediction(TASKS["bce"]())
    two = torch.cat([torch.zeros_like(logit), logit], 1)
    theirs = F.cross_entropy(two, target, torch.tensor([1.0, 2.0]), ignore_index=IGNORE)
    task = TASKS["bce"]()
    labelled = torch.ones(B, dtype=torch.bool)
    assert value(task.loss(logit, target, labelled)).item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.equal(task.elements(logit, target, labelled)[0], two.argmax(1)[target >= 0])


def test_dice_by_hand() -> None:
    task = SemanticSegmentation(["a", "b", "c"], loss="dice")
    probability = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    prediction = probability.log().T.reshape(1, 3, 2, 2)
    target = torch.tensor([[[0, 0], [1, IGNORE]]])
    first = 2 * (0.7 + 0.5) / (0.7 + 0.5 + 0.1 + 2)
    second = 2 * 0.8 / (0.2 + 0.25 + 0.8 + 1)
    term = task.loss(prediction, target, masked([True]))["dice"]
    assert term.total.item() == pytest.approx(1 - (first + second) / 2, abs=1e-6) and term.denominator == 1


def test_dice_of_a_perfect_prediction_is_zero_with_an_absent_class() -> None:
    target = torch.zeros(2, H, W, dtype=torch.long)
    target[0, 2:] = 2
    perfect = F.one_hot(target, 3).movedim(-1, 1) * 200.0
    term = SemanticSegmentation(CLASSES, loss="dice").loss(perfect, target, masked([True, True]))["dice"]
    assert term.total.abs() < 1e-6 and term.denominator == 2


def test_both_terms_are_the_single_ones() -> None:
    prediction, target, labelled = some_prediction(TASKS["ce"]()), some_target(TASKS["ce"]()), masked([True, False, True, True])
    both = TASKS["ce+dice"]().loss(prediction, target, labelled)
    for name in ("ce", "dice"):
        alone = TASKS[name]().loss(prediction, target, labelled)[name]
        assert torch.equal(both[name].total, alone.total) and both[name].coefficient == 1.0
    assert both["dice"].denominator == 3


def numpy_iou(prediction: np.ndarray, target: np.ndarray, classes: int) -> list[float]:
    scores = []
    for index in range(classes):
        union = ((prediction == index) | (target == index)).sum()
        scores.append(((prediction == index) & (target == index)).sum() / union if union else math.nan)
    return scores


def test_segmentation_scores_against_numpy_with_an_absent_class() -> None:
    random = np.random.default_rng(0)
    names = ["a", "b", "c", "never seen", "d"]
    task = SemanticSegmentation(names)
    target = random.choice([-1, 0, 1, 2, 4], (3, 20, 20))
    predicted = np.where(random.random(target.shape) < 0.6, np.maximum(target, 0), random.choice([0, 1, 4], target.shape))
    prediction = F.one_hot(torch.from_numpy(predicted), 5).movedim(-1, 1).float()
    metrics = task.metrics()
    task.update(metrics, prediction, torch.from_numpy(target), torch.ones(3, dtype=torch.bool))
    results = metrics.compute()
    known = target >= 0
    scores = numpy_iou(predicted[known], target[known], 5)
    assert "iou_never_seen" not in results and math.isnan(scores[3])
    for name, score in zip(names, scores, strict=True):
        if name != "never seen":
            assert results[f"iou_{name}"].item() == pytest.approx(score, abs=1e-6)
    assert results["miou"].item() == pytest.approx(np.nanmean(scores), abs=1e-6)
    assert results["pixel_accuracy"].item() == pytest.approx((predicted == target)[known].mean(), abs=1e-6)
    assert metrics["scores"].confusion[1, 4] == ((target == 1) & (predicted == 4)).sum(), "rows are the truth"


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    task, metrics = SemanticSegmentation(CLASSES), SemanticSegmentation(CLASSES).metrics()
    prediction = F.one_hot(torch.tensor([[[0, 0], [0, 2]]]), 3).movedim(-1, 1).float()
    task.update(metrics, prediction, torch.zeros(1, 2, 2, dtype=torch.long), masked([True]))
    results = metrics.compute()
    assert results["iou_sky"] == 0 and results["iou_road"] == 0.75 and results["miou"] == 0.375


def test_log_frequencies_are_learnt() -> None:
    mask = torch.tensor([0] * 699 + [1] * 199 + [2] * 99 + [IGNORE] * 3).reshape(20, 50)
    task = SemanticSegmentation(CLASSES)
    task.learn([mask[:10], mask[10:].to(torch.int16)])
    assert task.trivial(mask[None])[0, :, 3, 3].exp().tolist() == pytest.approx([0.7, 0.2, 0.1], rel=1e-5)
    binary = SemanticSegmentation(CLASSES[:2], "bce")
    binary.learn([torch.tensor([[0, 0], [1, IGNORE]])])
    assert binary.trivial(mask[None])[0, 0, 0, 0].item() == pytest.approx(math.log(2 / 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_masks_that_are_wrong_are_refused(dtype: torch.dtype) -> None:
    task = SemanticSegmentation(CLASSES)
    task.name = "scene"
    with pytest.raises(DataError, match=r"a\.png, task 'scene'.* value 3, 255; expected 0 to 2 \(road, a car, sky\), or -1"):
        task.check(torch.tensor([[0, 3], [255, 2]]).to(dtype), "a.png")
    with pytest.raises(DataError, match=r"shape \(1, 2, 2\)"):
        task.check(torch.zeros(1, 2, 2, dtype=dtype), "a.png")
    with pytest.raises(DataError, match="expected integers"):
        task.check(torch.zeros(2, 2), "a.png")
    task.check(torch.tensor([[0, 1], [2, 2]]).to(dtype), "a.png")
    task.check(torch.full((2, 2), IGNORE), "a.png")
    with pytest.raises(DataError, match="value -2;"):
        task.check(torch.tensor([[0, -2]]), "a.png")


def test_options_that_do_not_fit_are_refused() -> None:
    for arguments, message in (
        ({"classes": ["a"]}, "at least 2"),
        ({"classes": CLASSES, "loss": "bce"}, "exactly 2"),
        ({"classes": ["a b", "a-b", "c"]}, "iou_a_b"),
        ({"classes": ["a", "a"]}, "one metric name"),
        ({"classes": CLASSES, "class_weights": [1.0]}, "expected 3 numbers"),
        ({"classes": CLASSES, "class_weights": [1.0, math.nan, 1.0]}, "expected numbers >= 0"),
        ({"classes": CLASSES, "focal_gamma": -1.0}, "focal_gamma is -1.0"),
        ({"classes": CLASSES, "loss": "dice", "focal_gamma": 2.0}, "loss 'dice' has none"),
        ({"classes": CLASSES, "threshold": "validation"}, "threshold decides between two classes of loss 'bce'"),
        ({"classes": CLASSES[:2], "loss": "bce", "threshold": 1.0}, "threshold is 1.0"),
        ({"classes": CLASSES, "loss": "dice", "class_weights": [1.0, 1.0, 1.0]}, "ce\\+dice"),
    ):
        with pytest.raises(ConfigError, match=message):
            SemanticSegmentation(**arguments)
    with pytest.raises(ConfigError, match="maximum"):
        Depth(maximum=0.0)
    with pytest.raises(CheckpointError, match="sky"):
        SemanticSegmentation(CLASSES).load_state_dict(SemanticSegmentation(["x", "y", "sky"]).state_dict())


def test_masks_for_people() -> None:
    prediction = some_prediction(TASKS["ce"]())
    masks = SemanticSegmentation(CLASSES).decode(prediction)
    assert len(masks) == B and masks[1].dtype == torch.uint8 and torch.equal(masks[1].long(), prediction[1].argmax(0))
    assert SemanticSegmentation(CLASSES[:2], "bce").decode(torch.tensor([[[[-1.0, 2.0]]]]))[0].tolist() == [[0, 1]]


def test_colours_are_apart_and_bars_are_drawn() -> None:
    colors = palette(40)
    distance = torch.cdist(colors[:20], colors[:20]) + torch.eye(20)
    assert colors.shape == (40, 3) and colors.min() >= 0 and colors.max() <= 1 and distance.min() > 0.1
    axes = Figure().add_subplot()
    results = {"miou": torch.tensor(0.3), "iou_road": torch.tensor(0.5), "iou_sky": torch.tensor(0.1)}
    SemanticSegmentation(CLASSES).plots(results)["iou"](axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["road", "sky"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.5, 0.1])
    assert SemanticSegmentation(CLASSES).plots({}) == {}


# ---- depth


def depth_task(loss: str, median: float = 2.0, **options: float) -> Depth:
    task = Depth(loss, **options)  # type: ignore[arg-type]
    task.learn([torch.full((1, 2, 2), median)])
    return task


def raw(task: Depth, metres: Tensor) -> Tensor:
    """The raw prediction that means ``metres``."""
    return (metres.double() * math.log(2) / task.median.double()).expm1().log().float()


def test_zero_is_the_median_and_predictions_are_positive() -> None:
    task = depth_task("l1")
    assert task.metres(torch.zeros(1)).item() == pytest.approx(2.0, rel=1e-6)
    assert (task.metres(torch.linspace(-80, 80, 50)) > 0).all()
    assert task.metres(torch.tensor(3.0)).item() == pytest.approx(math.log1p(math.exp(3)) / math.log(2) * 2, rel=1e-6)
    assert (task.trivial(torch.ones(2, 1, 3, 3)) == 0).all()


def test_l1_by_hand() -> None:
    task = depth_task("l1")
    target = torch.tensor([1.0, 2.0, 0.0, math.nan, -3.0, 5.0]).view(1, 1, 2, 3)
    prediction = raw(task, torch.tensor([1.5, 2.0, 9.0, 9.0, 9.0, 3.0]).view(1, 1, 2, 3))
    term = task.loss(prediction, target, masked([True]))["l1"]
    assert term.total.item() == pytest.approx(2.5, abs=1e-5) and term.denominator == 3
    capped = depth_task("l1", maximum=4.0)
    term = capped.loss(prediction, target, masked([True]))["l1"]
    assert term.total.item() == pytest.approx(0.5, abs=1e-5) and term.denominator == 2
    predicted, true = capped.elements(raw(capped, torch.full((1, 1, 2, 3), 7.0)), target, masked([True]))
    assert predicted.tolist() == pytest.approx([4.0, 4.0]) and true.tolist() == [1.0, 2.0]


def test_silog_by_hand_and_half_blind_to_scale() -> None:
    task = depth_task("silog")
    target = torch.tensor([[1.0, 2.0, 4.0, math.nan], [3.0, 3.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    metres = torch.tensor([[2.0, 2.0, 1.0, 5.0], [6.0, 6.0, 1.0, 1.0]]).view(2, 1, 2, 2)
    ln2 = math.log(2)
    # d = ln2, 0, -2 ln2 in the first picture; ln2, ln2 in the second.
    first = (1 + 0 + 4) / 3 * ln2**2 - 0.5 * (-1 / 3 * ln2) ** 2
    term = task.loss(raw(task, metres), target, masked([True, True]))["silog"]
    assert term.total.item() == pytest.approx(first + 0.5 * ln2**2, rel=1e-5) and term.denominator == 2
    assert task.loss(raw(task, metres), target, masked([True, False]))["silog"].total.item() == pytest.approx(first, rel=1e-5)


def test_silog_sees_predictions_that_underflow() -> None:
    task = depth_task("silog")
    target, far = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), -300.0, requires_grad=True)
    term = task.loss(far, target, masked([True]))["silog"]
    d = -300 + math.log(2 / math.log(2))
    assert term.total.item() == pytest.approx(0.5 * d**2, rel=1e-5)
    term.total.backward()
    assert far.grad.item() == pytest.approx(d, rel=1e-5)
    near = torch.tensor([-15.001, -14.999])
    both = task._log_metres(near)
    assert (both[1] - both[0]).item() == pytest.approx(0.002, rel=0.01)


def test_berhu_by_hand() -> None:
    task = depth_task("berhu", median=10.0)
    target = torch.tensor([[10.0, 10.0, 10.0, math.nan], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]).view(3, 1, 2, 2)
    metres = torch.tensor([[20.0, 11.0, 7.0, 90.0], [1.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]]).view(3, 1, 2, 2)
    # Errors 10, 1, -3: c = 2.
    expected = ((100 + 4) / 4 + 1 + (9 + 4) / 4) / 3
    term = task.loss(raw(task, metres), target, masked([True, True, True]))["berhu"]
    assert term.total.item() == pytest.approx(expected, rel=1e-4) and term.denominator == 2


def test_berhus_threshold_has_no_gradient() -> None:
    task = depth_task("berhu", median=10.0)
    prediction = raw(task, torch.tensor([20.0, 11.0]).view(1, 1, 1, 2)).requires_grad_()
    task.loss(prediction, torch.full((1, 1, 1, 2), 10.0), masked([True]))["berhu"].total.backward()
    slope = torch.sigmoid(prediction.detach()) * 10 / math.log(2)
    # e / c = 10 / 2 above the threshold and the sign below it, each over two pixels.
    torch.testing.assert_close(prediction.grad / slope, torch.tensor([2.5, 0.5]).view(1, 1, 1, 2), rtol=1e-4, atol=0)


def test_median_is_streamed() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(1, 40, 41, generator=generator).pow(3) * 80 for _ in range(7)]
    for picture in pictures:
        picture[:, :5] = math.nan
        picture[:, 5:7] = 0.0
    everything = torch.cat([picture[picture > 0] for picture in pictures])
    task = Depth()
    task.learn(iter(pictures))
    assert task.median.item() == pytest.approx(everything.median().item(), rel=1e-3)
    task.learn([torch.full((1, 3, 3), 1.2345)])
    assert task.median.item() == pytest.approx(1.2345, rel=1e-7)
    capped = Depth(maximum=2.0)
    capped.learn([torch.tensor([[[1.0, 100.0, 100.0]]])])
    assert capped.median == 1.0


def test_depth_scores_against_numpy() -> None:
    random = np.random.default_rng(0)
    target = random.uniform(0.5, 9, (3, 1, 30, 30))
    metres = target * random.uniform(0.5, 2, target.shape)
    target[:, :, :4] = 0
    task = depth_task("l1")
    metrics = task.metrics()
    task.update(metrics, raw(task, torch.from_numpy(metres)), torch.from_numpy(target).float(), torch.ones(3, dtype=torch.bool))
    p, t = metres[target > 0], target[target > 0]
    results = metrics.compute()
    assert results["abs"].item() == pytest.approx(np.abs(p - t).mean(), rel=1e-4)
    assert results["rel"].item() == pytest.approx((np.abs(p - t) / t).mean(), rel=1e-4)
    assert results["rmse"].item() == pytest.approx(np.sqrt(((p - t) ** 2).mean()), rel=1e-4)
    for power in (1, 2, 3):
        share = (np.maximum(p / t, t / p) < 1.25**power).mean()
        assert share > 0 and results[f"delta{power}"].item() == pytest.approx(share, abs=1.5 / len(p))


def test_perfect_depth() -> None:
    task = depth_task("l1")
    target = torch.rand(2, 1, 8, 8) + 1
    metrics = task.metrics()
    task.update(metrics, raw(task, target), target, masked([True, True]))
    for key, measure in task.measures.items():
        assert metrics.compute()[key].item() == pytest.approx(measure.best, abs=1e-5)
    assert torch.allclose(task.decode(raw(task, target))[1], target[1, 0], rtol=1e-5)


def test_depth_that_is_wrong_is_refused() -> None:
    task = Depth()
    with pytest.raises(DataError, match=r"b\.npy, task 'depth'.*infinite.*0 or NaN"):
        task.check(torch.tensor([[[1.0, math.inf]]]), "b.npy")
    with pytest.raises(DataError, match="expected \\[1, height, width\\]"):
        task.check(torch.ones(2, 2), "b.npy")
    task.check(torch.tensor([[[1.0, math.nan, -1.0, 0.0]]]), "b.npy")


def test_prediction_and_truth_share_one_colour_range() -> None:
    task = depth_task("l1")
    target = torch.tensor([[[1.0, 3.0], [0.0, 2.0]]])
    pictures = []
    for prediction in (None, raw(task, target.clamp_min(1.0))):
        axes = Figure().add_subplot()
        task.draw(axes, torch.rand(3, 2, 2), prediction, target)
        pictures.append(np.asarray(axes.get_images()[0].get_array()))
        assert axes.texts[0].get_text() == "1 to 3 m"
    assert np.allclose(pictures[0][[0, 0, 1], [0, 1, 1]], pictures[1][[0, 0, 1], [0, 1, 1]], atol=0.02)


# ---- normals


def test_cosine_by_hand() -> None:
    task = SurfaceNormals()
    target = torch.zeros(1, 3, 1, 4)
    target[0, 2, 0, :3] = 1
    prediction = torch.tensor([[0.0, 0.0, 7.0], [3.0, 0.0, 3.0], [0.0, 0.0, -0.5], [1.0, 1.0, 1.0]]).T.reshape(1, 3, 1, 4)
    term = task.loss(prediction, target, masked([True]))["cosine"]
    assert term.total.item() == pytest.approx(0 + (1 - math.sqrt(0.5)) + 2, abs=1e-6) and term.denominator == 3


def test_a_zero_prediction_is_pulled_towards_the_truth() -> None:
    target = torch.tensor([0.6, 0.0, 0.8]).view(1, 3, 1, 1)
    prediction = torch.zeros(1, 3, 1, 1, requires_grad=True)
    SurfaceNormals().loss(prediction, target, masked([True]))["cosine"].total.backward()
    torch.testing.assert_close(prediction.grad, -100 * target)


def test_mean_direction_is_learnt() -> None:
    task = SurfaceNormals()
    second = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, math.nan]]).view(3, 1, 2)
    task.learn([torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1), second])
    half = math.sqrt(0.5)
    assert task.trivial(torch.zeros(1, 3, 2, 2))[0, :, 1, 1].tolist() == pytest.approx([half, half, 0.0])
    task.learn([torch.tensor([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]).view(3, 1, 2)])
    assert task.facts() == {"mean": [0.0, 0.0, 1.0]}


def test_normal_scores_against_numpy() -> None:
    random = np.random.default_rng(0)
    target = random.normal(size=(2, 3, 40, 40))
    target /= np.linalg.norm(target, axis=1, keepdims=True)
    prediction = 3 * (target + 0.35 * random.normal(size=target.shape))
    target[:, :, :7] = 0
    task = SurfaceNormals()
    metrics = task.metrics()
    task.update(metrics, torch.from_numpy(prediction), torch.from_numpy(target).float(), torch.ones(2, dtype=torch.bool))
    known = np.abs(target).sum(1) > 0
    p, t = np.moveaxis(prediction, 1, -1)[known], np.moveaxis(target, 1, -1)[known]
    degrees = np.degrees(np.arccos(np.clip((p * t).sum(1) / np.linalg.norm(p, axis=1), -1, 1)))
    results = metrics.compute()
    assert results["count"] == len(degrees)
    assert results["mean"].item() == pytest.approx(degrees.mean(), abs=1e-4)
    assert abs(results["median"].item() - np.sort(degrees)[(len(degrees) - 1) // 2]) <= 0.025 + 1e-6
    for key, limit in (("within_11_25", 11.25), ("within_22_5", 22.5), ("within_30", 30.0)):
        assert results[key].item() == pytest.approx((degrees < limit).mean(), abs=1e-6) and 0 < results[key] < 1


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 45.0, 90.0, 179.9, 180.0])
def test_angles_are_exact_everywhere(degrees: float) -> None:
    turn = math.radians(degrees)
    first, second = torch.tensor([[1.0, 0.0, 0.0]]).double(), torch.tensor([[math.cos(turn), math.sin(turn), 0.0]]).double()
    assert angle(first, second).item() == pytest.approx(degrees, abs=1e-6)


def test_perfect_and_opposite_normals() -> None:
    task = SurfaceNormals()
    target = F.normalize(torch.randn(2, 3, 8, 8), dim=1)
    for sign, mean, share in ((5.0, 0.0, 1.0), (-1.0, 180.0, 0.0)):
        metrics = task.metrics()
        task.update(metrics, sign * target, target, masked([True, True]))
        results = metrics.compute()
        assert results["mean"].item() == pytest.approx(mean, abs=1e-3)
        assert results["median"].item() == pytest.approx(mean, abs=1e-6)
        assert results["within_11_25"] == results["within_30"] == share
    assert torch.allclose(task.decode(3 * target)[1], target[1], atol=1e-6)


def test_normals_that_are_wrong_are_refused() -> None:
    task = SurfaceNormals()
    good = torch.tensor([[0.6, 0.0, math.nan], [0.0, 0.0, math.nan], [0.8, 0.0, math.nan]]).view(3, 1, 3)
    task.check(good, "c.png")
    task.check(good * 0.95, "c.png")
    with pytest.raises(DataError, match=r"c\.png.*lengths from 0\.5 to 0\.5"):
        task.check(good * 0.5, "c.png")
    with pytest.raises(DataError, match="2 \\* value / 255 - 1"):
        task.check(good * 255, "c.png")
    with pytest.raises(DataError, match="expected \\[3, height, width\\]"):
        task.check(good[:2], "c.png")
    with pytest.raises(DataError, match="infinite"):
        task.check(good * math.inf, "c.png")
