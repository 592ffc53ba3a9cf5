"""The charts that several tasks draw of a split's results."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from torch import Tensor

NUMBERED = 12
"""The numbers of more classes would not fit into the cells of a confusion matrix."""
NAMED = 40
"""The names of more classes would not fit beside it."""


def heat_map(confusion: Tensor, names: Sequence[str], axes: Axes) -> None:
    """A confusion matrix as shares of its rows.

    Args:
        confusion: counts [C, C], the truth as rows.
        names: of the classes.
        axes: where to draw.
    """
    counts = confusion.double().cpu()
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    places = range(len(names)) if len(names) <= NAMED else []
    axes.set_xticks(places, [names[place] for place in places], rotation=90, fontsize=6)
    axes.set_yticks(places, [names[place] for place in places], fontsize=6)
    if len(names) > NUMBERED:
        return
    for row, line in enumerate(shares.tolist()):
        for column, share in enumerate(line):
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=6, color=color)
