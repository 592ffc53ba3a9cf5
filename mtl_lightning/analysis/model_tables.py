"""A network in numbers, for the terminal and for ``model.md``."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mtl_lightning.analysis.model_summary import ModelSummary, Part
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.model import MultiTaskModel

GROUPS = 3
"""Groups of tasks with a line each in the terminal; ``model.md`` lists all."""
NAMED = 3
"""Tasks whose names are told in a line; of more it is how many they are."""
SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
TASK_HEADER = ("task", "parameters it uses", "of them its own", "of these its head", "FLOPs alone", "of them its head")
HEADER = ("part", "parameters", "learn", "share")


def short_count(number: float) -> str:
    """Three digits and a letter: 948, 1.25k, 11.2M, 3.64G."""
    for scale, letter in SCALES:
        if number >= 0.9995 * scale:
            size = number / scale
            return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}{letter}"
    return f"{number:.0f}"


def some(names: Sequence[str], number: int = NAMED) -> str:
    """The names, or how many."""
    return ", ".join(names) if len(names) <= number else f"{', '.join(names[: number - 1])} and {len(names) - number + 1} more"


def _sum(parts: Sequence[Part]) -> Part:
    return Part((), sum(part.parameters for part in parts), sum(part.learning for part in parts))


def _parts(summary: ModelSummary, groups: int) -> list[tuple[str, Part]]:
    everyone = len(summary.tasks)
    rows = [(f"shared by all {everyone} tasks", part) for part in summary.shared if len(part.tasks) == everyone]
    partly = [part for part in summary.shared if len(part.tasks) < everyone]
    named = partly if len(partly) <= groups else partly[: groups - 1]
    rows += [(f"shared by {some(part.tasks)}", part) for part in named]
    if rest := partly[len(named) :]:
        rows.append((f"shared by {len(rest)} more groups of tasks", _sum(rest)))
    own = list(summary.own.values())
    if own:
        rows.append((f"one task's own ({some(list(summary.own))})", _sum(own)))
    if summary.nobody.parameters:
        rows.append(("learnt by no task", summary.nobody))
    rows.append(("heads" if everyone > 1 else "head", _sum(list(summary.heads.values()))))
    return rows


def _cells(label: str, part: Part, whole: int) -> tuple[str, str, str, str]:
    return (
        label,
        f"{part.parameters:,}",
        f"{part.learning:,}",
        "100 %" if part.parameters == whole else f"{100 * part.parameters / whole:.1f} %",
    )


def flops_told(summary: ModelSummary) -> str:
    """What a row costs, in a sentence or two."""
    flops = summary.flops
    if isinstance(flops, str):
        return f"{flops}."
    what = f"One row ({summary.row}) takes {short_count(flops.together)} FLOPs forward (a multiply-add is 2)"
    missing = f" Not counted: {', '.join(flops.uncounted)}." if flops.uncounted else ""
    if len(flops.alone) == 1:
        return f"{what}.{missing}"
    low, high = min(flops.alone.values()), max(flops.alone.values())
    each = " to ".join(dict.fromkeys([short_count(low), short_count(high)]))
    saves = f"{short_count(flops.singles)} one by one, {flops.saved:.2f} times as many"
    return f"{what} for all {len(flops.alone)} tasks at once, {each} for one alone; {saves}.{missing}"


def diagram_title(summary: ModelSummary, model: MultiTaskModel) -> str:
    """What the diagram is of."""
    encoder = next((type(module).__name__ for module in model.architecture.modules() if isinstance(module, Encoder)), "")
    over = f" over {encoder}" if encoder else ""
    return f"{type(model.architecture).__name__}{over}: {short_count(summary.parameters)} parameters"


def model_table(summary: ModelSummary, title: str) -> Table:
    """For the terminal, a few lines whatever the number of tasks; :func:`flops_told` goes below it."""
    table = Table(title=title)
    for column in HEADER:
        words = column == "part"
        # In a narrow terminal the words take two lines, and the numbers stay whole.
        table.add_column(column, justify="left" if words else "right", no_wrap=not words)
    for label, part in _parts(summary, GROUPS):
        table.add_row(*_cells(label, part, summary.parameters))
    table.add_section()
    table.add_row(*_cells("all", Part((), summary.parameters, summary.learning), summary.parameters))
    return table


def show_network(summary: ModelSummary, title: str) -> None:
    """Print it."""
    console = Console()
    console.print(model_table(summary, title))
    console.print(flops_told(summary), highlight=False)


def model_page(summary: ModelSummary) -> str:
    """In Markdown: every group of tasks, and a line a task."""
    rows = [_cells(label, part, summary.parameters) for label, part in _parts(summary, len(summary.shared) + 1)]
    rows.append(_cells("**all**", Part((), summary.parameters, summary.learning), summary.parameters))
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---:|---:|---:|", *("| " + " | ".join(row) + " |" for row in rows)]
    flops = summary.flops
    lines += ["", flops_told(summary), "", "| " + " | ".join(TASK_HEADER) + " |", "|---|" + "---:|" * 5]
    for name in summary.tasks:
        head = summary.heads[name].parameters
        own = head + (summary.own[name].parameters if name in summary.own else 0)
        costs = ("-", "-") if isinstance(flops, str) else (short_count(flops.alone[name]), short_count(flops.heads[name]))
        lines.append("| " + " | ".join((name, f"{summary.used_by(name):,}", f"{own:,}", f"{head:,}", *costs)) + " |")
    return "\n".join(lines)
