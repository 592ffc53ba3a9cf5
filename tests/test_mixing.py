"""MixUp and CutMix against what is computed by hand."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_lightning.batch import Batch, Collate
from mtl_lightning.errors import ConfigError
from mtl_lightning.main import main
from mtl_lightning.mixing import CutMix, Mixing, MixUp, masked_loss
from mtl_lightning.tasks import Classification, Depth, MultiLabel, Regression, SemanticSegmentation, SurfaceNormals
from mtl_lightning.tasks.base import Task

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
KEY = (3, 1, 7)


def tasks() -> dict[str, Task]:
    made: dict[str, Task] = {
        "kind": Classification(classes=["a", "b", "c"], class_weights=[1.0, 2.0, 0.5]),
        "tags": MultiLabel(labels=["t", "u"]),
        "box": Regression(names=["x0", "y0", "x1", "y1"], mean=0.0, std=1.0),
        "mask": SemanticSegmentation(classes=["no", "yes"]),
        "depth": Depth(),
        "normals": SurfaceNormals(),
    }
    for name, task in made.items():
        task.name = name
    made["box"].learn([torch.rand(4) for _ in range(3)])
    return made


def batch_of(
    known: Mapping[str, Task], rows: list[list[str]], sizes: list[tuple[int, int]] | None = None, seed: int = 0
) -> Batch:
    """A row per list of labelled tasks."""
    draw = torch.Generator().manual_seed(seed)
    samples = []
    for row, labelled in enumerate(rows):
        height, width = (sizes or [(8, 10)] * len(rows))[row]
        targets = {
            "kind": torch.randint(3, (), generator=draw),
            "tags": torch.randint(2, (2,), generator=draw).float(),
            "box": torch.rand(4, generator=draw),
            "mask": torch.randint(-1, 2, (height, width), generator=draw),
            "depth": torch.rand(1, height, width, generator=draw) + 0.5,
            "normals": F.normalize(torch.randn(3, height, width, generator=draw), dim=0),
        }
        if row % 3 == 0:
            targets["tags"][0] = float("nan")
        image = torch.rand(3, height, width, generator=draw)
        samples.append({"id": str(row), "image": image} | {task: targets[task] for task in labelled if task in known})
    return Collate({name: task.target for name, task in known.items()})(samples)


def predictions(known: Mapping[str, Task], batch: Batch) -> dict[str, Tensor]:
    size = tuple(batch.inputs["image"].shape[-2:])
    shapes = {name: (len(batch), task.channels, *(size if task.target.dense else ())) for name, task in known.items()}
    draw = torch.Generator().manual_seed(9)
    return {name: torch.randn(shape, generator=draw).requires_grad_() for name, shape in shapes.items()}


def mixed(mixing: Mixing, known: Mapping[str, Task], batch: Batch, key: tuple[int, int, int] = KEY, rank: int = 0) -> Batch:
    return mixing(batch, {name: task.target for name, task in known.items()}, key, rank)


EVERYTHING = ["kind", "tags", "box", "mask", "depth", "normals"]


def test_mixup_pictures_losses_and_gradients_by_hand() -> None:
    known, share = tasks(), None
    batch = batch_of(known, [EVERYTHING] * 5)
    after = mixed(MixUp(alpha=1.0), known, batch)
    partner, share = after.partner["kind"], after.share
    assert 0 < share < 1 and (partner != torch.arange(5)).all() and sorted(partner.tolist()) == list(range(5))
    images = batch.inputs["image"]
    assert torch.allclose(after.inputs["image"], share * images + (1 - share) * images[partner], atol=1e-6)
    guess = predictions(known, batch)
    # Cross-entropy with class weights w: sum_i share * w[a_i] * ce(a_i) + (1 - share) * w[b_i] * ce(b_i), over the same weights.
    term = masked_loss(known["kind"], guess["kind"], after)["loss"]
    weights, a = torch.tensor([1.0, 2.0, 0.5]), batch.targets["kind"]
    b = a[partner]
    logs = guess["kind"].detach().log_softmax(1)
    rows = torch.arange(5)
    total = -(share * weights[a] * logs[rows, a] + (1 - share) * weights[b] * logs[rows, b]).sum()
    assert term.total.item() == pytest.approx(total.item(), rel=1e-5)
    assert term.denominator.item() == pytest.approx((share * weights[a] + (1 - share) * weights[b]).sum().item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(term.total, guess["kind"])
    probability, hot = logs.exp(), F.one_hot
    expected = (share * weights[a])[:, None] * (probability - hot(a, 3)) + ((1 - share) * weights[b])[:, None] * (
        probability - hot(b, 3)
    )
    assert torch.allclose(gradient, expected, atol=1e-6)
    # Pixels: own labels where there are some, the partner's where it has some.
    term = masked_loss(known["mask"], guess["mask"], after)["ce"]
    valid = batch.targets["mask"] >= 0
    count = share * valid.sum() + (1 - share) * valid[partner].sum()
    assert term.denominator.item() == pytest.approx(float(count), rel=1e-5)
    # Numbers, a box among them: the mean of both errors.
    term = masked_loss(known["box"], guess["box"], after)["loss"]
    boxes = batch.targets["box"]
    squares = share * (guess["box"] - boxes).square() + (1 - share) * (guess["box"] - boxes[partner]).square()
    assert term.total.item() == pytest.approx(squares.sum().item(), rel=1e-4)


def test_a_mixed_multilabel_is_the_loss_of_the_mixed_target() -> None:
    known = tasks()
    batch = batch_of(known, [["tags"]] * 6)
    batch.targets["tags"].nan_to_num_(1.0)
    after = mixed(MixUp(alpha=1.0), known, batch)
    guess = predictions(known, batch)["tags"]
    term = masked_loss(known["tags"], guess, after)["loss"]
    own = batch.targets["tags"]
    soft = after.share * own + (1 - after.share) * own[after.partner["tags"]]
    assert term.total.item() == pytest.approx(F.binary_cross_entropy_with_logits(guess, soft, reduction="sum").item(), rel=1e-5)
    assert term.denominator.item() == pytest.approx(own.numel())


def test_cutmix_pastes_pictures_and_dense_labels_and_counts_classes_by_area() -> None:
    known = tasks()
    batch = batch_of(known, [["kind", "tags", "mask", "depth", "normals"]] * 4)
    after = mixed(CutMix(probability=1.0), known, batch)
    partner = after.partner["kind"]
    assert set(after.partner) == {"kind", "tags", "box"}
    changed = (after.inputs["image"] != batch.inputs["image"]).any(1)
    area = changed[0]
    assert 0 < area.sum() < area.numel() and all(torch.equal(part, area) for part in changed)
    rows, columns = area.any(1).sum(), area.any(0).sum()
    assert rows * columns == area.sum(), "not a rectangle"
    assert after.share == pytest.approx(1 - float(area.float().mean()))
    for name in ("mask", "depth", "normals"):
        old, new = batch.targets[name], after.targets[name]
        assert torch.equal(new, torch.where(area, old[partner], old)), name
        guess = predictions(known, batch)[name]
        alone = known[name].loss(guess, new, batch.labelled[name])
        for key, term in masked_loss(known[name], guess, after).items():
            assert torch.equal(term.total, alone[key].total) and torch.equal(term.denominator, alone[key].denominator)


def test_cutmix_leaves_rows_with_numbers_alone_unless_told() -> None:
    known = tasks()
    batch = batch_of(known, [["kind", "box"], ["kind", "box"], ["kind"], ["kind"]])
    kept = mixed(CutMix(probability=1.0), known, batch)
    assert kept.partner["kind"].tolist() == [0, 1, 3, 2]
    assert torch.equal(kept.inputs["image"][:2], batch.inputs["image"][:2])
    blended = mixed(CutMix(probability=1.0, numbers="blend"), known, batch)
    assert blended.partner["box"].tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("mixing", [MixUp(alpha=1.0), CutMix(probability=1.0, numbers="blend")])
def test_only_rows_with_the_same_labels_mix_and_no_label_is_lost(mixing: Mixing) -> None:
    known = tasks()
    rows = [["kind"], ["kind", "tags"], [], ["kind"], ["tags"], ["kind", "tags"], [], ["mask"], ["kind"]]
    batch = batch_of(known, rows)
    original = {name: target.clone() for name, target in batch.targets.items()}
    seen = set()
    for step in range(30):
        after = mixed(mixing, known, batch, (0, 0, step))
        partner = after.partner["kind"]
        seen |= set(enumerate(partner.tolist()))
        assert all(rows[own] == rows[other] for own, other in enumerate(partner.tolist()))
        for name, labelled in batch.labelled.items():
            assert torch.equal(after.labelled[name], labelled)
        for row in (2, 4, 6, 7):  # no label, or no partner
            assert partner[row] == row
            assert torch.equal(after.inputs["image"][row], batch.inputs["image"][row])
        assert sorted(partner.tolist()) == list(range(len(rows)))
    assert {(0, 3), (0, 8), (3, 0), (1, 5), (5, 1)} <= seen
    assert all(torch.equal(batch.targets[name].nan_to_num(7), target.nan_to_num(7)) for name, target in original.items())


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_share_of_one_is_no_mixing(name: str) -> None:
    known = tasks()
    batch = batch_of(known, [EVERYTHING, ["kind"], EVERYTHING, []])
    whole = replace(batch, partner=dict.fromkeys(known, torch.tensor([2, 1, 0, 3])), share=1.0)
    guess = predictions(known, batch)[name]
    alone, both = known[name].loss(guess, batch.targets[name], batch.labelled[name]), masked_loss(known[name], guess, whole)
    assert alone.keys() == both.keys()
    for key, term in alone.items():
        assert torch.equal(term.total, both[key].total) and float(term.denominator) == float(both[key].denominator)
        assert term.coefficient == both[key].coefficient
        assert torch.equal(*(torch.autograd.grad(part.total, guess, retain_graph=True)[0] for part in (term, both[key])))


@pytest.mark.parametrize("mixing", [MixUp(alpha=1.0), CutMix(probability=1.0)])
def test_pictures_of_different_sizes_do_not_mix(mixing: Mixing) -> None:
    known = {"mask": tasks()["mask"]}
    sizes = [(8, 10), (6, 6), (8, 10), (6, 6), (8, 10)]
    batch = batch_of(known, [["mask"]] * 5, sizes)
    assert batch.padding is not None
    after = mixed(mixing, known, batch)
    assert torch.equal(after.padding, batch.padding)
    assert not after.inputs["image"][batch.padding[:, None].expand(-1, 3, -1, -1)].any()
    assert (after.targets["mask"][batch.padding] == -1).all()
    changed = (after.inputs["image"] != batch.inputs["image"]).flatten(1).any(1).tolist()
    assert changed == ([True] * 5 if isinstance(mixing, MixUp) else [True, False, True, False, True])
    for own, other in enumerate(after.partner.get("mask", torch.arange(5)).tolist()):
        assert sizes[own] == sizes[other]


def test_what_is_drawn_depends_on_seed_epoch_step_and_who_it_is() -> None:
    known = {"kind": tasks()["kind"]}
    batch = batch_of(known, [["kind"]] * 12)
    one, again = (mixed(MixUp(alpha=1.0), known, batch) for _ in range(2))
    assert torch.equal(one.inputs["image"], again.inputs["image"]) and one.share == again.share
    for key in ((4, 1, 7), (3, 2, 7), (3, 1, 8)):
        assert mixed(MixUp(alpha=1.0), known, batch, key).share != one.share
    other = mixed(MixUp(alpha=1.0), known, batch, rank=1)
    assert other.share == one.share and not torch.equal(other.partner["kind"], one.partner["kind"])
    often = [mixed(MixUp(probability=0.3), known, batch, (0, 0, step)) is not batch for step in range(300)]
    assert 0.2 < np.mean(often) < 0.4
    shares = [mixed(MixUp(alpha=2.0), known, batch, (0, 0, step)).share for step in range(300)]
    assert abs(float(np.mean(shares)) - 0.5) < 0.05 and float(np.var(shares)) == pytest.approx(0.05, rel=0.3)


def test_survey_and_errors() -> None:
    specs = {name: task.target for name, task in tasks().items()}
    all_, none = np.ones(40, dtype=bool), np.zeros(40, dtype=bool)
    labelled = dict.fromkeys(specs, none) | {"kind": all_}
    assert "MixUp: about 100 % of the labelled rows" in MixUp().survey(labelled, specs, 16)
    assert "CutMix: about 50 %" in CutMix().survey(labelled, specs, 16)
    with pytest.raises(ConfigError, match=r"CutMix can mix no training row \(all have a label of box\); set numbers to blend"):
        CutMix().survey(labelled | {"box": all_}, specs, 16)
    with pytest.raises(ConfigError, match="no two have the same labels"):
        MixUp().survey({"kind": np.array([True, False]), "tags": np.array([False, True])}, specs, 16)
    for options in ({"alpha": 0.0}, {"alpha": float("inf")}, {"probability": 1.5}):
        with pytest.raises(ConfigError, match=r"data\.init_args\.mixing"):
            MixUp(**options)


def test_moving_a_batch_takes_the_partners_along() -> None:
    known = {"kind": tasks()["kind"]}
    after = mixed(MixUp(), known, batch_of(known, [["kind"]] * 3)).to("meta")
    assert after.partner["kind"].device.type == "meta" and after.share < 1


def fit(runs: Path, name: str, *args: str) -> dict[str, Any]:
    main(["fit", "--config", str(CONF), "--runs", str(runs), f"--name={name}", *args])
    return torch.load(runs / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_a_run_goes_on_exactly_with_any_number_of_workers(tmp_path: Path) -> None:
    args = ["--data.init_args.mixing=MixUp", "--data.init_args.mixing.init_args.alpha=1", "--trainer.limit_val_batches=0"]
    whole = fit(tmp_path, "whole", *args, "--data.init_args.num_workers=1")
    fit(tmp_path, "cut", *args, "--trainer.max_steps=8", "--checkpoint.every_n_steps=1")
    resumed = fit(tmp_path, "cut", *args, "--ckpt_path=last")
    plain = fit(tmp_path, "plain", "--trainer.limit_val_batches=0")
    tensors = [key for key, value in whole.items() if isinstance(value, Tensor)]
    assert all(torch.equal(whole[key], resumed[key]) for key in tensors)
    assert any(not torch.equal(whole[key], plain[key]) for key in tensors)
    # Rows are counted as without mixing.
    rows = [[line for line in (tmp_path / run / "metrics.csv").read_text().splitlines() if "/rows," in line]
            for run in ("whole", "plain")]  # fmt: skip
    assert rows[0] == rows[1] != []


def test_what_a_run_says_of_a_mixing_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, "none", "--data.init_args.mixing=CutMix", "--data.init_args.hidden={color: 0.5}")
    assert "CutMix can mix no training row (all have a label of level)" in capsys.readouterr().err
