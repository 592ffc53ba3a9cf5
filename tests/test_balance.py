"""Epochs in which every class comes equally often."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from mtl_lightning.data.balance import balanced_order
from mtl_lightning.data.loader import AugmentedDataset, EpochSampler, Pick, ResumableLoader
from mtl_lightning.main import main
from tests.imbalanced import RareDataModule
from tests.test_loader import SPEC, Numbers, jitter, seen

pytestmark = pytest.mark.usefixtures("no_pictures")

CLASSES = torch.tensor([0] * 61 + [1] * 20 + [7] * 3 + [-1] * 17)[torch.randperm(101, generator=torch.Generator().manual_seed(4))]
PER_CLASS = 84 / 3


def order(epoch: int, classes: Tensor = CLASSES) -> tuple[Tensor, Tensor]:
    return balanced_order(classes, torch.Generator().manual_seed(epoch))


@pytest.mark.parametrize("epoch", range(5))
def test_classes_are_even_and_rows_without_a_label_come_once(epoch: int) -> None:
    rows, copies = order(epoch)
    assert len(rows) == 101
    assert Counter(CLASSES[rows].tolist()) == {0: PER_CLASS, 1: PER_CLASS, 7: PER_CLASS, -1: 17}
    times = torch.bincount(rows, minlength=101)
    for label, count in ((0, 61), (1, 20), (7, 3), (-1, 17)):
        expected = 1 if label < 0 else PER_CLASS / count
        assert set(times[label == CLASSES].tolist()) <= {int(expected), int(expected) + 1}
    assert len(set(zip(rows.tolist(), copies.tolist(), strict=True))) == 101
    assert copies.max() == times.max() - 1


def test_over_epochs_every_row_has_its_turn() -> None:
    times = sum(torch.bincount(order(epoch)[0], minlength=101) for epoch in range(60))
    assert isinstance(times, Tensor)
    mean = times[CLASSES == 0].float() / 60
    assert mean.min() > 0.2 and mean.max() < 0.75 and mean.mean() == pytest.approx(PER_CLASS / 61)


@pytest.mark.parametrize(
    "classes", [torch.zeros(5).long(), torch.full((4,), -1), torch.tensor([0, -1]), torch.arange(6), torch.tensor([0])]
)
def test_even_classes_take_every_row_once(classes: Tensor) -> None:
    rows, copies = order(1, classes)
    assert sorted(rows.tolist()) == list(range(len(classes))) and not copies.any()


def test_classes_that_do_not_divide_the_epoch_differ_by_one() -> None:
    rows, _ = order(2, torch.tensor([0] * 40 + [1] * 3 + [2] * 1))
    counts = torch.bincount(torch.tensor([0] * 40 + [1] * 3 + [2])[rows]).tolist()
    assert sum(counts) == 44 and max(counts) - min(counts) <= 1


def loader(workers: int = 0, replicas: int = 1, rank: int = 0, batch: int = 4) -> ResumableLoader:
    dataset = AugmentedDataset(Numbers(23), jitter, seed=5)
    classes = torch.tensor([0] * 15 + [1] * 2 + [-1] * 6)
    sampler = EpochSampler(dataset, shuffle=True, seed=5, replicas=replicas, rank=rank, classes=classes)
    return ResumableLoader(dataset, SPEC, sampler, batch, drop_last=False, num_workers=workers, pin_memory=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_going_on_in_mid_epoch_gives_the_same_pictures(workers: int) -> None:
    one = loader()
    assert len(one) == 6
    one.order.set_epoch(1)
    whole = seen(list(one))
    one.order.set_epoch(2)
    assert seen(list(one)) != whole
    first = loader(workers)
    first.order.set_epoch(1)
    batches = iter(first)
    start = [next(batches) for _ in range(2)]
    resumed = loader(workers)
    resumed.load_state_dict(first.state_dict())
    assert seen(start) + seen(list(resumed)) == whole


def test_a_row_that_comes_again_is_augmented_in_another_way() -> None:
    pictures = seen(list(loader()))
    assert len({name for name, _ in pictures}) < 23
    assert len(set(pictures)) == len(pictures) == 23


def test_a_first_copy_is_augmented_as_without_balance() -> None:
    dataset = AugmentedDataset(Numbers(23), jitter, seed=5)
    assert torch.equal(dataset[Pick(1, 3)]["image"], dataset[Pick(1, 3, copy=0)]["image"])
    assert not torch.equal(dataset[Pick(1, 3)]["image"], dataset[Pick(1, 3, copy=1)]["image"])


def test_global_batches_are_the_same_rows_on_any_number_of_processes() -> None:
    whole = list(loader())
    halves = [list(loader(replicas=2, rank=rank, batch=2)) for rank in range(2)]
    for batch, *parts in zip(whole[:-1], *halves, strict=False):
        assert sorted(seen([batch])) == sorted(seen(parts))


def test_only_the_training_split_is_balanced() -> None:
    from mtl_lightning.tasks import Classification

    module = RareDataModule(balance="kind", num_workers=0, rows=90, eval_rows=40, hidden=0.0)
    module.tasks = {"kind": Classification()}
    module.setup("fit")
    train, val = module.train_dataloader(), module.val_dataloader()
    counts = Counter(int(label) for batch in train for label in batch.targets["kind"])
    assert counts == {0: 30, 1: 30, 2: 30}
    assert [name for batch in val for name in batch.ids] == [f"val-{row}" for row in range(40)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.balance=marks"], "balance is marks, which is a MultiLabel.*set it to kind or odd"),
        (["--data.balance=nothing"], "balance is nothing, which is not among the tasks.*set it to kind or odd"),
        (["--model.only=[blob]"], "balance is kind, which is not among the tasks of this run.*leave it out"),
        (["--model.tasks.kind.init_args.class_weights=balanced"], "would do it twice"),
    ],
)
def test_what_cannot_be_balanced_is_an_error(args: list[str], message: str, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    import re

    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", "tests/conf/imbalanced.yaml", "--runs", str(tmp_path), *args])
    assert caught.value.code == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
