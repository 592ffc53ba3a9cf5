"""Runs that are killed with SIGKILL and resumed, in processes of their own: experiments/crash in small."""

from itertools import product
from pathlib import Path

import pytest

from experiments.crash.cases import OPTIONS, Case, chosen, every_case
from experiments.crash.child import Moment
from experiments.crash.run import plan, try_case

SHORT = ["--trainer.max_epochs=3"]
FEW = [
    (chosen("FAMO", (1, 1, 1, 0, 0)), [0.2, Moment("half a checkpoint written", 2)]),
    (chosen("UPGrad", (0, 0, 0, 1, 1)), [Moment("half a line of metrics.csv", 3), 0.3]),
    (chosen("DBMTL", (0, 1, 1, 1, 0)), [Moment("previous.ckpt renamed", 2)]),
]


@pytest.mark.parametrize(("case", "kills"), FEW, ids=[case.name for case, _ in FEW])
def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path: Path, case: Case, kills: list[Moment | float]) -> None:
    result = try_case(Case(case.name, [*case.args, *SHORT]), tmp_path, kills)
    assert not result.wrong
    # On a machine that is busy for a moment a kill by the clock may come too late.
    assert len(result.where) >= sum(isinstance(kill, Moment) for kill in kills)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(every_case())), ids=lambda number: every_case()[number].name)
def test_every_case(tmp_path: Path, number: int) -> None:
    result = try_case(every_case()[number], tmp_path, plan(number, 5, seed=0))
    assert not result.wrong and result.where


def test_each_two_options_meet() -> None:
    given = [case.args for case in every_case()]
    for first, second in product(OPTIONS, OPTIONS):
        for one, other in product((True, False), (True, False)):
            if first is not second:
                assert any((first.on[0] in args) == one and (second.on[0] in args) == other for args in given)
