"""Parameters by who learns them, FLOPs in closed form, and that counting leaves no trace."""

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from mtl_lightning.analysis.flops import Flops
from mtl_lightning.analysis.layout import lay_out
from mtl_lightning.analysis.model_summary import summarize_model
from mtl_lightning.analysis.model_tables import flops_told, model_page, model_table, short_count
from mtl_lightning.architectures import LTB, Architecture, HardSharing
from mtl_lightning.errors import ConfigError
from mtl_lightning.model import MultiTaskModel
from tests.sharers import Attending, Mixed, Parting, Separate, Stitched, network

ROW = {"image": torch.rand(1, 3, 8, 8)}
STAGES = (4 * 3 * 9 + 2 * 4, 6 * 4 * 9 + 2 * 6)
TRUNK = 2 * (4 * 3 * 9 * 64 + 6 * 4 * 9 * 16)
HEAD = 2 * 6


def counted(model: MultiTaskModel) -> Flops:
    flops = summarize_model(model, ROW).flops
    assert isinstance(flops, Flops)
    return flops


def test_parameters_by_their_tasks() -> None:
    model = network(Parting, 4, (4, 6, 6))
    summary = summarize_model(model, ROW, still=list(model.heads["task_2"].parameters()))
    last = 6 * 6 * 9 + 2 * 6
    assert [(part.tasks, part.parameters) for part in summary.shared] == [
        (("task_1", "task_2", "task_3", "task_4"), STAGES[0]),
        (("task_1", "task_3"), STAGES[1]),
        (("task_2", "task_4"), STAGES[1]),
    ]
    assert {name: part.parameters for name, part in summary.own.items()} == dict.fromkeys(summary.tasks, last)
    assert {part.parameters for part in summary.heads.values()} == {7} and summary.heads["task_2"].learning == 0
    assert summary.parameters == sum(value.numel() for value in model.parameters()) == summary.learning + 7
    assert summary.used_by("task_3") == STAGES[0] + STAGES[1] + last + 7


def test_a_frozen_trunk_is_learnt_by_nobody() -> None:
    class Frozen(HardSharing):
        def owners(self) -> dict[nn.Parameter, frozenset[str]]:
            return {}

    model = network(Frozen, 2)
    model.architecture.requires_grad_(False)
    summary = summarize_model(model, ROW)
    assert (summary.nobody.parameters, summary.nobody.learning, summary.learning) == (sum(STAGES), 0, 14)
    (first, _) = lay_out(model, ROW).columns
    assert first.boxes[0].frozen and first.boxes[0].tasks == {"task_1", "task_2"}


@pytest.mark.parametrize(
    ("kind", "together", "alone"),
    [(HardSharing, TRUNK + 3 * HEAD, TRUNK + HEAD), (Separate, 3 * (TRUNK + HEAD), TRUNK + HEAD)],
)
def test_flops_in_closed_form(kind: type[Architecture], together: int, alone: int) -> None:
    flops = counted(network(kind, 3))
    assert (flops.together, set(flops.alone.values()), set(flops.heads.values())) == (together, {alone}, {HEAD})
    assert flops.saved == pytest.approx(3 * alone / together) and not flops.uncounted


def test_tasks_of_other_ways_are_counted_each() -> None:
    """Columns that exchange need all columns for any task; what differs between tasks is not taken for the same."""
    assert counted(network(Stitched, 3)).alone["task_1"] == 3 * TRUNK + HEAD
    model = network(Attending, 2)
    model.architecture.attend["task_2"][0] = nn.Conv2d(4, 1, 3, padding=1)  # type: ignore[index, operator]
    flops = counted(model)
    assert flops.alone["task_2"] - flops.alone["task_1"] == 2 * 4 * 8 * 4 * 4


def test_counting_leaves_no_trace() -> None:
    model = network(HardSharing, 2)
    model.architecture.stages()[0][0].freeze(True)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    summarize_model(model, ROW)
    lay_out(model, ROW)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes and {*modes} == {True, False}
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in model.modules())


class _Odd(nn.Module):
    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails, self.rnn = fails, nn.LSTM(4, 2, batch_first=True)

    def forward(self, tensor: Tensor) -> Tensor:
        if self.fails and not self.training:
            raise NotImplementedError("no such kernel\nand more")
        return tensor + self.rnn(tensor.mean(3).transpose(1, 2))[0].mean()


def test_what_cannot_be_counted_is_said() -> None:
    for fails in (True, False):
        model = network(HardSharing, 2)
        model.architecture.stages()[0][0].body.append(_Odd(fails))  # type: ignore[operator]
        summary = summarize_model(model, ROW)
        told = flops_told(summary)
        if fails:
            assert told == "FLOPs could not be counted (NotImplementedError: no such kernel)."
            assert "problem" in summary.as_dict()["flops"] and "| task_1 |" in model_page(summary)
        else:
            assert told.endswith("Not counted: mkldnn_rnn_layer.")
    with pytest.raises(ConfigError, match="3-channel"):
        summarize_model(network(HardSharing, 2), {"image": torch.rand(1, 1, 8, 8)})


def test_the_table_is_short_with_many_tasks() -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    summary = summarize_model(network(Parting, 40), ROW)
    console.print(model_table(summary, "net"))
    text = console.export_text() + flops_told(summary)
    assert len(text.splitlines()) <= 12 and "shared by task_1, task_3 and 18 more" in text
    assert [short_count(number) for number in (0, 948, 999.6, 12_340, 999_999, 3.64e9)] == [
        "0", "948", "1.00k", "12.3k", "1.00M", "3.64G",
    ]  # fmt: skip


def test_lanes_and_columns_of_a_tree() -> None:
    layout = lay_out(network(Parting, 4, (4, 6, 6)), ROW)
    assert layout.lanes == [("task_1",), ("task_3",), ("task_2",), ("task_4",)]
    assert [[box.lanes for box in column.boxes] for column in layout.columns] == [
        [(0, 1, 2, 3)], [(0, 1), (2, 3)], [(0,), (1,), (2,), (3,)],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "titles", "sizes"),
    [
        (Stitched, ["stage 1", "stitches", "stage 2", "stitches"], [(STAGES[0],) * 3, (9,), (STAGES[1],) * 3, (9,)]),
        (Mixed, ["stage 1", "stage 2", "gates"], [(STAGES[0],) * 3, (STAGES[1],) * 3, (12,)]),
        (Attending, ["stage 1", "attend", "stage 2", "attend"], [(STAGES[0],), (5,), (STAGES[1],), (7,)]),
    ],
)
def test_what_is_added_stands_behind_its_stage(kind: type[Architecture], titles: list[str], sizes: list[tuple[int, ...]]) -> None:
    columns = lay_out(network(kind, 3), ROW).columns
    assert [column.title for column in columns] == titles and [column.boxes[0].sizes for column in columns] == sizes
    assert [column.added for column in columns] == [not title.startswith("stage") for title in titles]


def test_what_learns_no_more_is_drawn_so() -> None:
    """The branches that a fixed tree leaves out, and the logits that chose."""
    model = network(LTB, 2)
    model.architecture.set_epoch(10)
    columns = lay_out(model, ROW).columns
    assert [(column.title, sorted(box.frozen for box in column.boxes)) for column in columns] == [
        ("stage 1", [False, True]), ("logits", [True]), ("stage 2", [False, True]), ("logits", [True]),
    ]  # fmt: skip
    trunk = network(HardSharing, 2)
    still = list(trunk.architecture.stages()[0][0].parameters())
    assert [column.boxes[0].frozen for column in lay_out(trunk, ROW, still).columns] == [True, False]


def test_many_tasks_share_lanes() -> None:
    layout = lay_out(network(Parting, 40), ROW)
    assert [len(lane) for lane in layout.lanes] == [1, 1, 1, 1, 1, 15] * 2
    assert layout.heads[5] == (7,) * 15
    assert sorted(task for lane in layout.lanes for task in lane) == sorted(layout.tasks)
