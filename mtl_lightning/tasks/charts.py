"""The charts that several tasks draw of a split's results."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from torch import Tensor

from mtl_lightning.metrics.calibration import calibration_error
from mtl_lightning.tasks.drawing import WRONG, resize

NUMBERED = 12
"""The numbers of more classes would not fit into the cells of a confusion matrix."""
NAMED = 120
"""The names of more classes would not fit beside it."""
BLUE, GREY = "#4e79a7", "#9aa4b2"


def heat_map(confusion: Tensor, names: Sequence[str], axes: Axes) -> None:
    """A confusion matrix as shares of its rows, beside each true class how often it was there; its figure grows with the classes.

    Args:
        confusion: counts [C, C], the truth as rows.
        names: of the classes.
        axes: where to draw.
    """
    counts = confusion.double().cpu()
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set_title("confusion, rows add up to 1")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (count)")
    places = range(len(names)) if len(names) <= NAMED else []
    axes.set_xticks(places, [names[place] for place in places], rotation=90, fontsize=6)
    axes.set_yticks(places, [f"{names[place]} ({int(counts[place].sum())})" for place in places], fontsize=6)
    side = max(4.0, 1.5 + 0.15 * len(places))
    resize(axes, side + 1, side)
    if len(names) > NUMBERED:
        return
    for row, line in enumerate(shares.tolist()):
        for column, share in enumerate(line):
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=6, color=color)


def reliability_diagram(table: Tensor, frequency: str, axes: Axes) -> None:
    """Observed frequency over predicted probability, and above it how the predictions are spread.

    As in A. Niculescu-Mizil, R. Caruana (ICML 2005, "Predicting good probabilities with supervised learning"). On the diagonal
    probabilities can be believed; below it the network is too sure.

    Args:
        table: [3, BINS] as :func:`mtl_lightning.metrics.calibration.reliability` gives it.
        frequency: what is observed, for the axis.
        axes: where to draw.
    """
    table = table.double().cpu()
    count, hits, probability = (row[table[0] > 0] for row in table)
    observed, expected = (hits / count).numpy(), (probability / count).numpy()
    width = 1 / table.shape[1]
    places = (table[0] > 0).nonzero().flatten().double().numpy() * width + width / 2
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, zorder=1)
    axes.bar(places, observed, width * 0.9, color=BLUE, alpha=0.85, zorder=2)
    gap = axes.vlines(expected, observed, expected, color=WRONG, linewidth=1.5, zorder=3)
    gap.set_label("gap to the mean probability")
    axes.plot(expected, expected, ".", color=WRONG, markersize=4, zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel=frequency)
    axes.text(0.03, 0.95, f"ECE {float(calibration_error(table)):.3f}", va="top", transform=axes.transAxes)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.92), fontsize=7, frameon=False)
    spread = axes.inset_axes((0, 1.03, 1, 0.17))
    spread.bar(places, (count / count.sum()).numpy(), width * 0.9, color=GREY)
    spread.set(xlim=(0, 1), xticks=[], yticks=[])
    spread.set_ylabel("share", fontsize=7)
    for side in ("top", "right", "left"):
        spread.spines[side].set_visible(False)
