"""Whether a run that was killed and resumed is the one that was not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

MEASURED = ("data/samples_per_second", "data/wait")
"""Rows of metrics.csv that depend on the clock."""
COUNTED = "epoch_loop.scheduler_progress"
"""How often Lightning stepped a schedule: it does so for a plateau after an epoch is saved. Nothing reads it."""


class Consumed(NamedTuple):
    """What a journal says.

    Attributes:
        batches: what counts in the end, in order: (epoch, batch) with its samples and the hash of their pixels.
        again: of each process but the first, how many batches it trained again.
        where: what each process noted last.
        seconds: of training, from its first start to its first end.
    """

    batches: list[tuple[tuple[int, int], str]]
    again: list[int]
    where: list[str]
    seconds: float


def read_journal(file: Path) -> Consumed:
    """Follow the processes of a run: each throws away what those before it did beyond its first batch."""
    batches: list[tuple[tuple[int, int], str]] = []
    again: list[int] = []
    where: list[str] = []
    times: dict[str, float] = {}
    fresh = False
    for line in file.read_text().splitlines():
        if line.startswith("@"):
            name, at = line[1:].split("\t")
            times.setdefault(name, float(at))
            if name == "started":
                fresh = True
                again.append(0)
                where.append("")
            where[-1] = name
            continue
        epoch, batch, what = line.split("\t", 2)
        key = (int(epoch), int(batch))
        if fresh:
            kept = [entry for entry in batches if entry[0] < key]
            again[-1], batches, fresh = len(batches) - len(kept), kept, False
        batches.append((key, what))
    seconds = times["final validation"] - times["training"] if "final validation" in times else 0.0
    return Consumed(batches, again[1:], where, seconds)


def differences(whole: Path, cut: Path) -> list[str]:
    """What differs between two run folders.

    Args:
        whole: of the run that nobody stopped.
        cut: of the other one.
    """
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        found += [f"{name}: {what}" for what in _checkpoints(whole / "checkpoints" / name, cut / "checkpoints" / name)]
    for name, read in {"metrics.csv": _metrics, "summary.json": _lines, "summary.md": _lines}.items():
        mine, theirs = read(whole / name), read(cut / name)
        if mine != theirs:
            first = next((pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]), (len(mine), len(theirs)))
            found.append(f"{name}: {first[0]} became {first[1]}")
    files = [{path.name for path in run.rglob("*") if not path.name.endswith(".tmp")} for run in (whole, cut)]
    if files[0] != files[1]:
        found.append(f"files: {sorted(files[0] ^ files[1])} are in one folder alone")
    return found


def _lines(file: Path) -> list[str]:
    """Its lines; the folder's name is RUN in them: a run that was killed before it saved is started anew in another folder."""
    return file.read_text().replace(f"# {file.parent.name}\n", "# RUN\n").splitlines()


def _metrics(file: Path) -> list[str]:
    return [line for line in _lines(file) if line.split(",")[2] not in MEASURED]


def _checkpoints(whole: Path, cut: Path) -> Iterator[str]:
    first, second = (dict(_flat(torch.load(file, weights_only=True), "", str(file.parent.parent))) for file in (whole, cut))
    for key in first.keys() | second.keys():
        if COUNTED in key:
            continue
        if key not in first or key not in second:
            yield f"{key} is in one alone"
        elif not _same(first[key], second[key]):
            yield f"{key}: {_short(first[key])} became {_short(second[key])}"


def _flat(value: Any, prefix: str, folder: str) -> Iterator[tuple[str, Any]]:
    """Every leaf with its path; the run's folder, in names and in values, becomes RUN."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}/{key}".replace(folder, "RUN"), folder)
    elif isinstance(value, list | tuple) and value:
        for key, item in enumerate(value):
            yield from _flat(item, f"{prefix}/{key}", folder)
    else:
        yield prefix, value.replace(folder, "RUN").replace(str(Path(folder).parent), "RUNS") if isinstance(value, str) else value


def _same(one: Any, other: Any) -> bool:
    """Bit by bit: a NaN is itself, and 0 is not -0."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))
    return type(one) is type(other) and repr(one) == repr(other)


def _short(value: Any) -> str:
    return repr(value)[:80]
