import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtl_lightning.batch import Batch, Collate, TargetSpec
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.loader import AugmentedDataset, EpochSampler, FurtherBatches, ResumableLoader
from mtl_lightning.errors import DataError

SPEC = {"y": TargetSpec("numbers", (1,), torch.float32, 0.0)}


class Numbers(LabelledDataset):
    """Row i is a 1x1 picture of value i; odd rows have no label."""

    def __init__(self, length: int, broken: int = -1) -> None:
        self.ids = [str(row) for row in range(length)]
        self.broken = broken

    def labelled(self, task: str) -> np.ndarray:
        return np.arange(len(self)) % 2 == 0

    def targets(self, task: str, rows: Sequence[int]) -> Iterator[Tensor]:
        return (torch.tensor([float(row)]) for row in rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.broken:
            raise DataError(f"row {index} is broken")
        sample = {"id": str(index), "image": torch.full((1, 1, 1), float(index))}
        return sample if index % 2 else sample | {"y": torch.tensor([float(index)])}


def jitter(sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {"image": sample["image"] + torch.rand(1)}


def make(length: int = 11, batch: int = 3, workers: int = 0, replicas: int = 1, rank: int = 0, **more: Any) -> ResumableLoader:
    dataset = AugmentedDataset(Numbers(length, **more), jitter, seed=5)
    sampler = EpochSampler(dataset, shuffle=True, seed=5, replicas=replicas, rank=rank)
    return ResumableLoader(dataset, SPEC, sampler, batch, drop_last=False, num_workers=workers, pin_memory=False)


def seen(batches: list[Batch]) -> list[tuple[str, float]]:
    return [(name, float(value)) for batch in batches for name, value in zip(batch.ids, batch.inputs["image"], strict=True)]


def epoch(loader: ResumableLoader, number: int) -> list[tuple[str, float]]:
    loader.order.set_epoch(number)
    return seen(list(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_in_mid_epoch_gives_the_same_pictures(workers: int) -> None:
    whole = [epoch(make(), number) for number in range(3)]
    assert len({name for name, _ in whole[0]}) == 11
    assert whole[0] != whole[1]
    loader = make(workers=workers)
    loader.order.set_epoch(1)
    batches = iter(loader)
    first = [next(batches) for _ in range(2)]
    state = loader.state_dict()
    resumed = make(workers=workers)
    resumed.load_state_dict(state)
    # Lightning's order on resume: load the state, make the iterator, then set the epoch.
    rest = iter(resumed)
    resumed.order.set_epoch(1)
    assert seen(first) + seen(list(rest)) == whole[1]
    assert epoch(resumed, 2) == whole[2]


def test_a_state_after_the_last_batch_is_the_next_epoch() -> None:
    loader = make()
    epoch(loader, 0)
    state = loader.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    assert seen(list(resumed)) == epoch(make(), 1)


def test_another_batch_size_is_refused_where_it_cannot_go_on() -> None:
    loader = make(length=24)
    batches = iter(loader)
    next(batches), next(batches)
    for other in ({"batch": 4}, {"batch": 6}, {"batch": 1}, {"replicas": 2}):
        with pytest.raises(DataError, match="batch size times processes is 3"):
            make(length=24, **other).load_state_dict(loader.state_dict())
    make(length=24, batch=1, replicas=3).load_state_dict(loader.state_dict())
    list(batches)
    make(length=24, batch=4).load_state_dict(loader.state_dict())


def test_further_batches_of_another_size_go_on_from_a_whole_one() -> None:
    further = FurtherBatches(make(batch=3))
    first = [name for name, _ in seen([next(further) for _ in range(2)])]
    resumed = FurtherBatches(make(batch=4))
    resumed.load_state_dict(further.state_dict())
    assert first[4:] == [name for name, _ in seen([next(resumed)])][: len(first) - 4]


def test_global_batches_are_the_same_rows_on_any_number_of_processes() -> None:
    one = make(length=12, batch=4)
    halves = [make(length=12, batch=2, replicas=2, rank=rank) for rank in range(2)]
    for whole, *parts in zip(one, *halves, strict=True):
        assert sorted(whole.ids) == sorted(name for part in parts for name in part.ids)


def test_rows_that_fill_up_have_no_label_and_every_row_counts_once() -> None:
    parts = [list(make(length=11, batch=3, replicas=2, rank=rank)) for rank in range(2)]
    assert len(parts[0]) == len(parts[1])
    labels = [name for part in parts for batch in part for name, has in zip(batch.ids, batch.labelled["y"], strict=True) if has]
    assert sorted(labels, key=int) == [str(row) for row in range(0, 11, 2)]


def test_the_main_process_keeps_its_own_random_stream() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    epoch(make(), 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_ours_leaves_a_worker_as_it_is(workers: int) -> None:
    before = multiprocessing.active_children()
    with pytest.raises(DataError, match=r"^row 4 is broken$"):
        list(make(workers=workers, broken=4))
    assert not set(multiprocessing.active_children()) - set(before)


def test_collate_pads_and_places_labels() -> None:
    dense = {"d": TargetSpec("depth", (1,), torch.float32, 0.0), "m": TargetSpec("mask", (), torch.int64, -1)}
    small, large = torch.ones(3, 2, 3), torch.ones(3, 4, 2)
    batch = Collate(dense)(
        [
            {"id": "s", "image": small, "m": torch.ones(2, 3).long(), "size": (20, 30)},
            {"id": "l", "image": large, "d": torch.ones(1, 4, 2)},
        ]
    )
    assert batch.inputs["image"].shape == (2, 3, 4, 3)
    assert batch.sizes.tolist() == [[20, 30], [4, 2]]
    assert batch.padding is not None and batch.padding.sum(dim=(1, 2)).tolist() == [6, 4]
    assert batch.labelled["m"].tolist() == [True, False] and batch.labelled["d"].tolist() == [False, True]
    assert int((batch.targets["m"][0] == 1).sum()) == 6 and int((batch.targets["m"] == -1).sum()) == 6 + 12
    assert float(batch.targets["d"].sum()) == 8 and bool(
        (batch.inputs["image"].sum((1, 2, 3)) == torch.tensor([18.0, 24.0])).all()
    )


def test_collate_names_the_sample_whose_label_does_not_fit() -> None:
    with pytest.raises(DataError, match=r"pic.png: the label of task 'm' has shape \(3, 3\), expected \(2, 2\)"):
        Collate({"m": TargetSpec("mask", (), torch.int64, -1)})(
            [{"id": "pic.png", "image": torch.ones(3, 2, 2), "m": torch.ones(3, 3)}]
        )
