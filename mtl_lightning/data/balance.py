"""An epoch in which every class of a task comes equally often."""

import torch
from torch import Tensor


def balanced_order(classes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As many rows as there are, each class of the labelled ones as often as any other.

    Rows without a label keep their share: as many of them are drawn as there are. How often a row comes differs by one at most
    from its expectation, n / (C * n_c) for the labelled rows n, the C classes that are there, and the n_c rows of its class
    (systematic resampling; J. Carpenter, P. Clifford, P. Fearnhead, IEE Proceedings Radar, Sonar and Navigation 1999, "Improved
    particle filter for nonlinear problems"): independent draws would leave out a third of the rows of a class for nothing.

    Args:
        classes: int64 [N], the class of each row, -1 where it has no label.
        generator: decides everything else.

    Returns:
        Rows [N] and, for each, how many times the same row came before in this order [N]. Counts of two classes differ by one at
        most, and so does the count of unlabelled rows from their number.
    """
    labelled = classes >= 0
    _, which, counts = torch.unique(classes[labelled], return_inverse=True, return_counts=True)
    weights = torch.ones(len(classes), dtype=torch.float64)
    weights[labelled] = (labelled.sum().double() / (len(counts) * counts.double()))[which]
    # Rows of a class lie side by side, in random order within it.
    shuffled = torch.randperm(len(classes), generator=generator)
    sorted_rows = shuffled[classes[shuffled].argsort(stable=True)]
    ends = weights[sorted_rows].cumsum(0)
    points = torch.arange(len(classes), dtype=torch.float64) + torch.rand((), generator=generator, dtype=torch.float64)
    drawn = torch.searchsorted(ends, points * (ends[-1] / len(classes)), right=True).clamp_max(len(classes) - 1)
    copies = torch.arange(len(drawn)) - torch.searchsorted(drawn, drawn)
    order = torch.randperm(len(drawn), generator=generator)
    return sorted_rows[drawn][order], copies[order]
