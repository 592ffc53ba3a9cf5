"""Decision thresholds: given, or chosen on the validation split and kept with the weights that they were chosen for."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl_lightning.errors import CheckpointError, ConfigError
from mtl_lightning.metrics.auroc import edges
from mtl_lightning.metrics.decisions import best_edges, outcomes

Threshold = float | Literal["validation"]
"""A probability, or ``validation``."""


class Thresholds(nn.Module):
    """The least probabilities of yes-or-no decisions.

    Args:
        threshold: one probability in (0, 1) for all, or ``validation``: chosen whenever the validation split has been
            evaluated. Before the first time it is one half.

    Raises:
        ConfigError: it is no such number.
    """

    chosen: Tensor | None

    def __init__(self, threshold: Threshold) -> None:
        super().__init__()
        self.tuning = threshold == "validation"
        self.fixed = 0.0
        if not self.tuning:
            if isinstance(threshold, str) or not 0 < threshold < 1:
                raise ConfigError(f"threshold is {threshold}, expected a probability between 0 and 1, or 'validation'")
            self.fixed = math.log(threshold / (1 - threshold))
        self.register_buffer("chosen", None, persistent=False)

    @property
    def untuned(self) -> bool:
        """Whether they are still to be chosen."""
        return self.tuning and self.chosen is None

    @property
    def plain(self) -> bool:
        """Whether each is one half."""
        return self.fixed == 0 and self.chosen is None

    def forward(self, log_odds: Tensor) -> Tensor:
        """Decide.

        Args:
            log_odds: [..., D], one column a decision.

        Returns:
            bool, shaped alike.
        """
        return log_odds >= (self.fixed if self.chosen is None else self.chosen.to(log_odds.device))

    def choose(self, histogram: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """Take, for each decision, the edge of the histogram's bins with the highest objective.

        Where several edges are equally good, it is the middle of the run of such edges that is nearest to one half. A decision
        that only ever was yes or only ever no in truth stays at one half.

        Args:
            histogram: [2, D, BINS] as :func:`~mtl_lightning.metrics.auroc.histogram` counts log-odds.
            objective: from counts [2, 2, D, BINS + 1] (truth, decision) to what is to be large [D, BINS + 1].

        Returns:
            The counts [2, 2, D] at the chosen thresholds.
        """
        table = outcomes(histogram)
        best = best_edges(table, objective)
        self._keep(edges().to(best.device)[best].float())
        return table.gather(-1, best.expand(2, 2, -1).unsqueeze(-1)).squeeze(-1)

    def probabilities(self, names: Sequence[str]) -> dict[str, float]:
        """What was chosen, for tables; empty where nothing was."""
        if not self.tuning or self.chosen is None:
            return {}
        return dict(zip(names, self.chosen.double().sigmoid().tolist(), strict=True))

    def facts(self) -> dict[str, Any]:
        """What was chosen as log-odds, for the checkpoint; empty where nothing was."""
        return {} if not self.tuning or self.chosen is None else {"thresholds": self.chosen.tolist()}

    def restore(self, facts: dict[str, Any], name: str, decisions: int) -> None:
        """Take over what :meth:`facts` returned, if thresholds are to be chosen at all.

        Args:
            facts: of the checkpoint.
            name: of the task.
            decisions: how many thresholds there should be.

        Raises:
            CheckpointError: there are more or fewer.
        """
        if not self.tuning or facts.get("thresholds") is None:
            return
        if len(facts["thresholds"]) != decisions:
            raise CheckpointError(
                f"task '{name}': the checkpoint has {len(facts['thresholds'])} thresholds, expected {decisions}; "
                "use a checkpoint of this task"
            )
        self._keep(torch.tensor(facts["thresholds"]))

    def _keep(self, log_odds: Tensor) -> None:
        self.chosen = log_odds if self.chosen is None else log_odds.to(self.chosen.device)
