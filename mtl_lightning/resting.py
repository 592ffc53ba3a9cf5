"""Parameters that do not learn in a step, and how their gradients are taken away. Pure torch."""

from collections.abc import Collection

from torch import nn

from mtl_lightning.freeze import Freezer
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.weighting import Weighting


class Resting:
    """Those of frozen stages, those that no task uses (any more), and those whose tasks are all absent from the batch.

    They get no gradient rather than one of 0, with which AdamW would move them all the same.

    Args:
        model: the network.
        weighting: whose own parameters rest with their tasks, too.
        freezer: of stages; None freezes none.
    """

    def __init__(self, model: MultiTaskModel, weighting: Weighting, freezer: Freezer | None) -> None:
        self._parts = (model, weighting)
        self._freezer = freezer
        self._unused: tuple[int, list[nn.Parameter]] = (-1, [])
        self._absent: list[nn.Parameter] = []

    @property
    def for_good(self) -> list[nn.Parameter]:
        """What the configuration keeps from learning in the whole run."""
        return [] if self._freezer is None else self._freezer.for_good

    def still(self) -> list[nn.Parameter]:
        """What does not learn at present, whatever the batch: frozen stages, and what no task uses."""
        model, _ = self._parts
        revision = model.architecture.revision
        if self._unused[0] != revision:
            self._unused = (revision, [parameter for parameter, users in model.owners().items() if not users])
        return [*([] if self._freezer is None else self._freezer.parameters), *self._unused[1]]

    def note(self, present: Collection[int]) -> None:
        """Before a backward pass: what no present task uses, unless it has a gradient from the step's earlier micro-batches.

        Args:
            present: positions of the tasks that are in the batch.
        """
        model, weighting = self._parts
        self._absent = []
        names = {name for position, name in enumerate(model.heads) if position in present}
        if len(names) < len(model.heads):
            absent = [parameter for parameter, owners in model.owners().items() if not owners & names]
            absent += [parameter for parameter, task in weighting.owners().items() if task not in present]
            self._absent = [parameter for parameter in absent if parameter.grad is None]

    def forget(self) -> None:
        """Nothing rests for its task's absence in this step."""
        self._absent = []

    def drop(self) -> None:
        """After it: take the gradients away, before anything clips or applies them."""
        for parameter in [*self._absent, *self.still()]:
            parameter.grad = None
