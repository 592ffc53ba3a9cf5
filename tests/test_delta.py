"""Delta m against values worked out by hand."""

import doctest
from typing import Any

import pytest

from mtl_lightning.analysis import delta
from mtl_lightning.analysis.delta import Compared, compare, delta_over_metrics, delta_over_tasks
from mtl_lightning.errors import DataError


def summary(**tasks: dict[str, tuple[float, bool | None]]) -> dict[str, Any]:
    """A split of summary.json."""
    return {
        "tasks": {
            name: {
                "metrics": {"loss": 1.0} | {key: value for key, (value, _) in metrics.items()},
                "measures": {key: {"higher_is_better": higher} for key, (_, higher) in metrics.items()},
                "auxiliary": name.startswith("aux"),
            }
            for name, metrics in tasks.items()
        }
    }


RUN = summary(seg={"miou": (0.33, True), "accuracy": (0.60, True)}, depth={"rmse": (0.55, False)}, aux={"mae": (9.0, False)})
BASES = {
    "seg": summary(seg={"miou": (0.30, True), "accuracy": (0.75, True)}),
    "depth": summary(depth={"rmse": (0.50, False)}),
}


def test_by_hand() -> None:
    compared = compare(RUN, BASES)
    assert [(entry.task, entry.metric) for entry in compared] == [("seg", "miou"), ("seg", "accuracy"), ("depth", "rmse")]
    assert [entry.gain for entry in compared] == pytest.approx([10, -20, -10])
    assert delta_over_metrics(compared) == pytest.approx(20 / 3)
    assert delta_over_tasks(compared) == pytest.approx((-5 - 10) / 2)


def test_directions() -> None:
    better = [Compared("a", "accuracy", 0.9, 0.8, True), Compared("b", "mae", 0.1, 0.2, False)]
    assert delta_over_metrics(better) < 0 < delta_over_tasks(better)
    same = [entry._replace(value=entry.base) for entry in better]
    assert (delta_over_metrics(same), delta_over_tasks(same)) == (0.0, 0.0)


def test_as_many_metrics_everywhere() -> None:
    compared = [Compared("a", "accuracy", 0.7, 0.8, True), Compared("b", "accuracy", 0.9, 0.6, True)]
    assert delta_over_metrics(compared) == -delta_over_tasks(compared)


def test_negative_base() -> None:
    assert Compared("a", "log_likelihood", -1.0, -2.0, True).gain == 50


def test_left_out() -> None:
    run = summary(price={"mae": (1.0, False), "r2": (0.5, True), "coverage": (0.9, None)})
    base = {"price": summary(price={"mae": (2.0, False), "r2": (0.1, True), "coverage": (0.8, None)})}
    assert [entry.metric for entry in compare(run, base)] == ["mae"]
    assert [entry.metric for entry in compare(run, base, {"price": ["r2"]})] == ["r2"]


@pytest.mark.parametrize(
    ("run", "bases", "metrics", "message"),
    [
        (RUN, {"seg": BASES["seg"]}, None, "the base has no task 'depth'"),
        (RUN, BASES, {"dept": ["rmse"]}, "the run has no task 'dept', it has seg, depth"),
        (RUN, BASES, {"depth": ["mae"]}, "no metric depth/mae, it has rmse"),
        (RUN, BASES, {"depth": []}, "name at least one"),
        (RUN, BASES | {"depth": summary(depth={"rmse": (0.0, False)})}, None, "depth/rmse is 0"),
        (RUN, BASES | {"depth": summary(depth={"rmse": (float("nan"), False)})}, None, "depth/rmse of the base is nan"),
        (summary(a={"coverage": (0.9, None)}), {}, {"a": ["coverage"]}, "have a direction"),
    ],
)
def test_refused(run: Any, bases: Any, metrics: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare(run, bases, metrics)


def test_examples() -> None:
    assert doctest.testmod(delta).failed == 0
