"""One process's error ends all of them."""

from collections.abc import Callable

import lightning.pytorch as pl
from lightning.pytorch import Callback

from mtl_lightning.launch import Peers


class EndTogether(Callback):
    """Tells the other processes of an error at once: what follows from it on them is then known as such.

    Args:
        peers: gives the other processes; None where there are none.
    """

    def __init__(self, peers: Callable[[], Peers | None]) -> None:
        self.peers = peers

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell, unless it is an interruption, which all processes get."""
        if isinstance(exception, Exception) and (peers := self.peers()) is not None:
            peers.fail()
