"""The tables of ``report.md``."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mtl_lightning.analysis.check.step import StepCost
from mtl_lightning.analysis.check.survey import Survey
from mtl_lightning.analysis.check.tallies import SAMPLED, Shares, Tally
from mtl_lightning.tasks.base import Task

NAMES = 40
"""Classes that a table lists."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Markdown; the first ``words`` columns are text, the others numbers."""
    rule = "|" + "".join("---|" if column < words else "---:|" for column in range(len(header)))
    body = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in (header, *rows)]
    return "\n".join([body[0], rule, *body[1:]])


def label_table(found: Survey) -> str:
    """Labelled rows per task and split."""
    splits = list(found.rows)
    rows = [(name, *(_of(found.labelled[split][name], found.rows[split]) for split in splits)) for name in found.tallies]
    return table(("task", *splits), rows)


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.0f} %)" if part else f"**none** of {whole}"


def fault_list(found: Survey, shown: int) -> str:
    """The first faults."""
    lines = [f"- {fault.where}: {fault.problem}" for fault in found.faults[:shown]]
    rest = len(found.faults) - len(lines)
    return "\n".join([*lines, f"- … and {rest} more in [faults.txt](faults.txt)"] if rest else lines)


def balance(name: str, splits: Mapping[str, Tally]) -> str | None:
    """How often each name occurs, for labels that have names."""
    shares = {split: found for split, tally in splits.items() if tally.labelled and (found := tally.shares()) is not None}
    if not shares:
        return None
    first = next(iter(shares.values()))
    chosen = list(range(len(first.names)))
    if len(chosen) > NAMES:
        order = np.argsort(-first.counts, kind="stable").tolist()
        chosen = order[: NAMES // 2] + order[-NAMES // 2 :]
    rows = [(first.names[index], *(_share(part, index) for part in shares.values())) for index in chosen]
    title = f"**{name}**, share of the labelled {first.unit}"
    if first.unit == "pixels":
        title += " (rows that have some)"
    if len(chosen) < len(first.names):
        title += f"; the {NAMES // 2} most frequent and the {NAMES // 2} rarest of {len(first.names)}"
    return f"{title}\n\n{table((name, *shares), rows)}"


def _share(shares: Shares, index: int) -> str:
    count, known = int(shares.counts[index]), int(shares.known[index])
    if not count:
        return "**0**"
    percent = 100 * count / known
    text = f"{percent:.0f} %" if percent >= 9.5 else f"{percent:.2g} %"
    return f"{text} ({int(shares.rows[index])})" if shares.unit == "pixels" else f"{count} ({text})"


def ranges(tallies: Mapping[str, Mapping[str, Tally]]) -> str | None:
    """Minimum, median and maximum of all numbers."""
    found = [
        (name, spread, split) for name, splits in tallies.items() for split, tally in splits.items() for spread in tally.spreads()
    ]
    order = list(dict.fromkeys((name, spread.name) for name, spread, _ in found))
    rows = [
        (name, spread.name, split, str(len(spread.values)), *map(_number, (spread.low, np.median(spread.values), spread.high)))
        for name, spread, split in sorted(found, key=lambda entry: order.index((entry[0], entry[1].name)))
    ]
    text = table(("task", "number", "split", "values", "min", "median", "max"), rows, 3)
    sampled = f"\n\nMedians of depth are of {SAMPLED} pixels a row." if any(name == "metres" for _, name, *_ in rows) else ""
    return text + sampled if rows else None


def coverage(tallies: Mapping[str, Mapping[str, Tally]]) -> str | None:
    """The share of the pixels with a label, for labels that are pictures."""
    rows = [
        (name, split, str(tally.labelled), f"{100 * (1 - share):.1f} %", str(tally.empty))
        for name, splits in tallies.items()
        for split, tally in splits.items()
        if (share := tally.unlabelled_share) is not None
    ]
    return table(("task", "split", "labelled rows", "labelled pixels", "rows without any"), rows, 2) if rows else None


def sizes(found: Survey) -> str:
    """Heights, widths and how pixels are stored."""
    rows = []
    for split, counted in found.sizes.items():
        if counted:
            heights, widths = (_sides(counted, axis) for axis in (0, 1))
            common = ", ".join(f"{width} x {height} ({number})" for (height, width), number in counted.most_common(3))
            rows.append((split, widths, heights, str(len(counted)), common))
    header = ("split", "width: min / median / max", "height: min / median / max", "sizes", "most frequent (pictures)")
    text = table(header, rows, len(header))
    if found.modes:
        text += "\n\nPixels are stored as " + ", ".join(f"{mode} ({number})" for mode, number in found.modes.most_common()) + "."
    return text


def _sides(counted: Counter[tuple[int, int]], axis: int) -> str:
    sides = np.repeat([size[axis] for size in counted], list(counted.values()))
    return f"{sides.min()} / {int(np.median(sides))} / {sides.max()}"


def _number(value: float) -> str:
    return f"{float(value):.4g}"


def cost_tables(cost: StepCost) -> str:
    """Parameters, time and memory of a step."""
    rows = [(part, f"{size:,}", f"{learning:,}") for part, (size, learning) in cost.parameters.items() if size]
    total, learning = (sum(size[column] for size in cost.parameters.values()) for column in (0, 1))
    rows.append(("all", f"{total:,}", f"{learning:,}"))
    memory = [(name, _mebibytes(size)) for name, size in cost.bytes.items()]
    if cost.peak is not None:
        what = (
            "most that tensors took"
            if "CPU" not in cost.device
            else "growth of the process's resident memory, weights not counted"
        )
        memory.append((f"**peak, measured** ({what})", f"**{_mebibytes(cost.peak)}**"))
    return "\n\n".join([table(("part", "parameters", "learning"), rows), speed(cost), table(("memory", "MiB"), memory)])


def speed(cost: StepCost) -> str:
    """The step in a sentence."""
    how = f"median of {cost.timed}" if cost.timed else "a first step, slower than later ones"
    wait = (
        f"{1000 * cost.waiting:.0f} ms more until the next batch is there"
        if cost.waiting > 0.002
        else "batches are there in time"
    )
    return (
        f"A training step of {cost.batch_size} rows on {cost.device} takes {1000 * cost.seconds:.0f} ms ({how}): "
        f"forward, backward and optimizer; {wait}."
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f}"


def notes(found: Survey, tasks: Mapping[str, Task], fixed_size: bool) -> list[str]:
    """What is no fault, but worth a look."""
    told = []
    for name, task in tasks.items():
        splits = found.tallies[name]
        for split, tally in splits.items():
            if not tally.labelled and split in ("val", "test"):
                told.append(f"{name}: no label in the {split} split")
            if tally.empty:
                told.append(f"{name}: {tally.empty} labelled rows of {split} have no labelled pixel")
        train = splits.get("train")
        if train is not None and train.labelled:
            told += [f"{name}: {line}" for line in _about_training(train, task)]
    if not fixed_size and len({size for counted in found.sizes.values() for size in counted}) > 1:
        told.append("pictures differ in size and data.init_args.image_size is null: smaller ones of a batch are filled up")
    return told


def _about_training(train: Tally, task: Task) -> list[str]:
    told = [f"{spread.name} is {spread.low:.4g} in all training rows" for spread in train.spreads() if spread.low == spread.high]
    shares = train.shares()
    if shares is None:
        return told
    alike = [names for names in _alike(shares.names) if len(names) > 1]
    told += [f"the names {' and '.join(map(repr, names))} differ in capitals or spaces alone" for names in alike]
    for count, words in ((0, "no training label of"), (1, "one training row alone is")):
        names = [name for name, rows in zip(shares.names, shares.rows, strict=True) if rows == count]
        if names:
            told.append(f"{words} {', '.join(names[:10])}" + (f" and {len(names) - 10} more" if len(names) > 10 else ""))
    if task.target.kind != "multilabel" and shares.counts.sum():
        top = int(shares.counts.argmax())
        share = shares.counts[top] / shares.counts.sum()
        if share > 0.9:
            told.append(f"{100 * share:.0f} % of the training labels are {shares.names[top]}")
    return told


def _alike(names: Sequence[str]) -> Iterable[list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault("".join(name.casefold().replace("_", " ").split()), []).append(name)
    return found.values()
