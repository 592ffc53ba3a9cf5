"""Kills runs at random moments, resumes them until they end, and compares them with runs that nobody killed."""

import argparse
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from experiments.crash.cases import COMMON, Case, every_case
from experiments.crash.child import Moment, run
from experiments.crash.compare import differences, read_journal

PATIENCE = 900.0
"""Seconds until a run is given up."""
SAVING = [
    "half a checkpoint written",
    "last.ckpt written, not renamed",
    "best.ckpt renamed",
    "best.ckpt written, not renamed",
    "last.ckpt renamed",
]
BETWEEN = ["validation", "validated", "half a line of metrics.csv", "epoch ended", "lines of metrics.csv", "optimizer step"]
OUTSIDE = ["sanity check", "final validation", "summary.json renamed", "finally validated", "summary.md written, not renamed"]


class Result(NamedTuple):
    """What became of a case.

    Attributes:
        name: of the case.
        where: what each killed process was doing.
        again: how many batches were trained again.
        wrong: what differs; nothing should.
    """

    name: str
    where: list[str]
    again: int
    wrong: list[str]

    def row(self) -> str:
        """Of the table."""
        hit = ", ".join(f"{name} ({number})" if number > 1 else name for name, number in Counter(self.where).items())
        return f"| {self.name} | {len(self.where)} | {hit} | {self.again} | {'NO' if self.wrong else 'yes'} |"


class Process:
    """Starts runs; each is forked from a process that has imported everything and done nothing.

    Args:
        folder: of the case; taken away first.
        case: what is trained.
        draw: whether pictures are drawn.
    """

    def __init__(self, folder: Path, case: Case, draw: bool) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.case, self.draw = folder, case, draw
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["experiments.crash.child"])

    def journal(self, name: str) -> Path:
        """What the processes of a run did."""
        return self.folder / f"{name}.journal"

    def latest(self, name: str) -> Path | None:
        """The folder of its last attempt."""
        runs = sorted((self.folder / name).glob("tiny*"), key=lambda path: int(re.sub(r"\D", "", path.name) or 1))
        return runs[-1] if runs else None

    def go(self, name: str, moment: Moment | None = None, delay: float | None = None) -> bool:
        """Start a run, or go on with it, and wait until it ends.

        Args:
            name: of the run.
            moment: at which it kills itself.
            delay: seconds of training after which it is killed.

        Returns:
            Whether it was killed.

        Raises:
            RuntimeError: it ended in another way, or not at all.
        """
        args = ["fit", *COMMON, *self.case.args, f"--runs={self.folder / name}"]
        latest = self.latest(name)
        if latest is not None and (latest / "checkpoints/last.ckpt").exists():
            args.append("--ckpt_path=last")
        journal, out = self.journal(name), self.folder / f"{name}.txt"
        known = journal.stat().st_size if journal.exists() else 0
        process = self._context.Process(target=run, args=(args, journal, out, moment, self.draw))
        process.start()
        try:
            begun = self._wait_for_training(process, journal, known)
            process.join(PATIENCE if delay is None else max(0.0, begun + delay - time.monotonic()))
            if delay is not None and process.is_alive():
                process.kill()
            process.join(PATIENCE)
            if process.exitcode not in (0, -signal.SIGKILL):
                raise RuntimeError(f"{self.case.name} ended with {process.exitcode}; see {out}")
            return process.exitcode != 0
        finally:
            self._clear(process)

    @staticmethod
    def _wait_for_training(process: multiprocessing.process.BaseProcess, journal: Path, known: int) -> float:
        """When it began; when it ended where it never did."""
        end = time.monotonic() + PATIENCE
        while process.is_alive() and time.monotonic() < end:
            if journal.exists() and b"@training" in journal.read_bytes()[known:]:
                break
            time.sleep(0.005)
        return time.monotonic()

    @staticmethod
    def _clear(process: multiprocessing.process.BaseProcess) -> None:
        """The workers of a killed process end by themselves within seconds; nobody waits for that here."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()


def plan(number: int, kills: int, seed: int) -> list[Moment | float]:
    """Kills of a case, by the clock (a share of the training time) and at moments in turn.

    Cases take turns through the moments.

    Args:
        number: of the case.
        kills: how many; the last of three or more comes before or after training.
        seed: of what is random.
    """
    generator = random.Random(1000 * seed + number)
    inside = kills - (kills > 2)
    moments = [SAVING[number % len(SAVING)], BETWEEN[number % len(BETWEEN)]]
    # Shares that leave a part of the run to those that follow.
    found: list[Moment | float] = [
        Moment(moments[turn // 2 % 2], generator.randint(1, 3)) if turn % 2 else generator.uniform(0, 2 / (inside + 1))
        for turn in range(inside)
    ]
    if kills > 2:
        outside = Moment(OUTSIDE[number % len(OUTSIDE)])
        found.insert(0 if outside.name == "sanity check" else len(found), outside)
    return found


def try_case(case: Case, folder: Path, kills: list[Moment | float], draw: bool = False) -> Result:
    """Run a case twice, and compare.

    Args:
        case: what is trained.
        folder: for it.
        kills: in turn, of one of the two.
        draw: whether pictures are drawn.
    """
    process = Process(folder, case, draw)
    if process.go("whole"):
        raise RuntimeError(f"{case.name}: something else killed the run")
    ours = read_journal(process.journal("whole"))
    left, hit = list(kills), 0
    while True:
        kill = left.pop(0) if left else None
        moment, delay = (None, kill * ours.seconds) if isinstance(kill, float) else (kill, None)
        killed = process.go("cut", moment, delay)
        hit += killed
        if not killed:
            break
    whole, cut = process.latest("whole"), process.latest("cut")
    assert whole is not None and cut is not None
    theirs = read_journal(process.journal("cut"))
    wrong = differences(whole, cut)
    if ours.batches != theirs.batches:
        wrong.append(f"samples: {len(ours.batches)} batches, {len(theirs.batches)} after the kills, or others")
    return Result(case.name, theirs.where[:hit], sum(theirs.again), wrong)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/crash"))
    parser.add_argument("--kills", type=int, default=5, help="of a case, one of them before or after training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of those to try, from 0; all without")
    parser.add_argument("--draw", action="store_true", help="draw the pictures, too")
    options = parser.parse_args()
    results = []
    print("| case | kills | the killed process was at | batches trained again | equal |\n|---|---|---|---|---|", flush=True)
    for number, case in enumerate(every_case()):
        if options.cases is None or number in options.cases:
            kills = plan(number, options.kills, options.seed)
            results.append(try_case(case, options.folder / str(number), kills, options.draw))
            print(results[-1].row(), flush=True)
            for what in results[-1].wrong:
                print(f"    {what}", flush=True)
    print(f"\n{sum(len(result.where) for result in results)} kills, {sum(bool(r.wrong) for r in results)} cases that differ")
    if any(result.wrong for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
