"""Tasks that share the first stages: limits, trees, and what is refused."""

import copy
from pathlib import Path

import pytest
import torch

from mtl_lightning.architectures import Group, SplitAt
from mtl_lightning.errors import ConfigError
from mtl_lightning.gradients.sharing import Sharing
from mtl_lightning.loading import load
from mtl_lightning.main import main
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Regression, Task
from tests.sharing import assert_owners, calls, gradients, pictures, small

CONF = Path(__file__).parent / "conf" / "tiny.yaml"
TASKS = ["a", "b", "c"]


def test_nothing_shared_is_a_network_for_each_task() -> None:
    model, source = SplitAt(small(4, 6), TASKS, 0), pictures()
    alone = {task: copy.deepcopy(model.encoder) for task in TASKS}
    for place, task in enumerate(TASKS):
        for own, stages in zip(alone[task].stages, model.stages(), strict=True):
            own.load_state_dict(stages[place].state_dict())
    assert not torch.equal(model.stages()[0][0].body.conv.weight, model.stages()[0][1].body.conv.weight)  # type: ignore[union-attr]
    found = model(source)
    for place, task in enumerate(TASKS):
        expected = alone[task](source)
        for level, other in zip(found[task], expected, strict=True):
            torch.testing.assert_close(level.tensor, other.tensor, rtol=0, atol=0)
        mine = [torch.nn.ModuleList([stages[place] for stages in model.stages()])]
        torch.testing.assert_close(gradients(found[task], mine[0]), gradients(expected, alone[task]), rtol=0, atol=0)
    assert not model.common


def test_all_shared_is_hard_sharing() -> None:
    encoder, source = small(4, 6), pictures()
    model, expected = SplitAt(encoder, TASKS, 2), copy.deepcopy(encoder)(source)
    found = model(source)
    assert model.common
    assert found["a"] is found["b"] is found["c"]
    assert list(model.parameters()) == list(encoder.parameters())
    for level, other in zip(found["a"], expected, strict=True):
        torch.testing.assert_close(level.tensor, other.tensor, rtol=0, atol=0)
    assert calls(model, source, None) == [1, 1]


TREE = [Group(["a", "b"], 3), Group(["c"], 2, [Group(["d", "e"])])]


def test_a_tree_shares_stage_by_stage() -> None:
    model, source = SplitAt(small(4, 5, 6, 7), list("abcde"), 1, TREE), pictures()
    assert [len(stages) for stages in model.stages()] == [1, 2, 3, 4]
    shared = {frozenset(users) for users in model.owners().values()}
    assert shared == {frozenset(users) for users in ("abcde", "ab", "cde", "a", "b", "c", "de")}
    assert_owners(model, source)
    found = model(source)
    assert found["d"] is found["e"]
    assert found["a"][2] is found["b"][2]
    assert found["a"][3] is not found["b"][3]
    assert calls(model, source, None) == [1, 2, 3, 4]
    assert calls(model, source, ["a"]) == [1, 1, 1, 1]
    assert calls(model, source, ["c", "d"]) == [1, 1, 2, 2]


def test_the_last_shared_layer_is_one_that_most_tasks_share() -> None:
    model = SplitAt(small(4, 5, 6, 7), list("abcde"), 1, TREE)
    tasks: dict[str, Task] = {name: Regression(names=["x"]) for name in "abcde"}
    (weight,) = Sharing(MultiTaskModel(tasks, model)).last
    assert weight is model.encoder.stages[0].body.conv.weight  # type: ignore[union-attr]


def test_a_run_may_leave_tasks_of_the_groups_out() -> None:
    model = SplitAt(small(4, 5, 6, 7), ["a", "d"], 1, TREE)
    assert [len(stages) for stages in model.stages()] == [1, 2, 2, 2]
    model.check_tasks("abcde")
    with pytest.raises(ConfigError, match=r"init_args\.groups names c; the configured tasks are a, b, d, e"):
        model.check_tasks("abde")


@pytest.mark.parametrize(
    ("shared", "groups", "message"),
    [
        (3, None, r"init_args\.shared is 3, expected 0 to 2"),
        (-1, None, r"init_args\.shared is -1, expected 0 to 2"),
        (1, [Group(["a", "b"], 2)], r"init_args\.groups: task c is in no group"),
        (1, [], r"init_args\.groups: task a, b, c is in no group"),
        (1, [Group(["a", "b"]), Group(["b", "c"])], r"init_args\.groups\[1\]: task b is named twice \(groups\[0\]\)"),
        (1, [Group(["a"], 1, [Group(["a", "b", "c"])])], r"init_args\.groups\[0\]: task a is named twice"),
        (1, [Group(["a", "a"]), Group(["b", "c"])], r"init_args\.groups\[0\]: task a is named twice"),
        (1, [Group(["a", "b", "c"], 0)], r"init_args\.groups\[0\]\.shared is 0, expected 1 to 2, or null"),
        (0, [Group([], 2, [Group(["a", "b", "c"], 1)])], r"init_args\.groups\[0\]\.groups\[0\]\.shared is 1, expected 2 to 2"),
        (0, [Group(["a", "b", "c"], 3)], r"init_args\.groups\[0\]\.shared is 3, expected 0 to 2"),
        (0, [Group(["a", "b", "c"]), Group()], r"init_args\.groups\[1\] has neither tasks nor groups"),
    ],
)
def test_what_makes_no_tree_is_refused(shared: int, groups: list[Group] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture\." + message):
        SplitAt(small(4, 6), TASKS, shared, groups)


RUN = ["fit", "--config", str(CONF), "--trainer.max_epochs=1", "--model.architecture=SplitAt",
       "--model.architecture.init_args.shared=0"]  # fmt: skip
GROUPS = "--model.architecture.init_args.groups=[{tasks: [color], shared: 1}, {groups: [{tasks: [level, mask]}]}]"


def test_a_group_of_a_task_that_is_not_configured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*RUN, "--runs", str(tmp_path), GROUPS.replace("color", "color, typo")])
    assert "groups names typo; the configured tasks are color, level, mask" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tree_from_the_command_line(tmp_path: Path) -> None:
    main([*RUN, "--runs", str(tmp_path), GROUPS, "--model.only=[color, mask]", "--model.weighting=UW"])
    predictor = load(tmp_path / "tiny")
    owners = {tuple(sorted(users)) for users in predictor.model.owners().values()}
    assert owners == {("color",), ("mask",)}
