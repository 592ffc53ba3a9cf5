"""What processes send each other in a step, counted where torch hands it to the network: ours, Lightning's and DDP's own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Message = tuple[str, int, str]
"""The collective, how many numbers, their type."""


def sizes(arguments: Any) -> list[Tensor]:
    """All tensors in the arguments of an operator."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, Mapping):
        return sizes(list(arguments.values()))
    if isinstance(arguments, Sequence) and not isinstance(arguments, str):
        return [tensor for argument in arguments for tensor in sizes(argument)]
    return []


class Messages(TorchDispatchMode):
    """Notes every collective while it is entered.

    Attributes:
        sent: since the last look.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Message] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            first = sizes(args[0])
            name = function._schema.name.removeprefix("c10d::").rstrip("_")
            self.sent.append(
                (name, sum(tensor.numel() for tensor in first), str(first[0].dtype).removeprefix("torch.") if first else "")
            )
        return function(*args, **(kwargs or {}))


class CountMessages(Callback):
    """Writes the messages of every step of the main process, a JSON line a step, of what lies between two batches' starts.

    Args:
        out: the file.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out)
        self.mode = Messages()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.mode.__enter__()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._note(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._note(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.mode.__exit__(None, None, None)

    def _note(self, trainer: Any) -> None:
        sent, self.mode.sent = self.mode.sent, []
        if trainer.is_global_zero:
            with self.out.open("a") as file:
                file.write(json.dumps(sent) + "\n")


def counting(out: Path) -> list[str]:
    """Arguments of ``fit`` that have a run's messages counted."""
    return ["--trainer.callbacks+=tests.messages.CountMessages", f"--trainer.callbacks.out={out}"]


def steps(out: Path) -> list[list[Message]]:
    """The messages of each step; without the first, in which DDP settles, and the last, with an epoch's end."""
    return [[(name, size, kind) for name, size, kind in json.loads(line)] for line in out.read_text().splitlines()[2:-1]]


def numbers(step: Sequence[Message]) -> list[int]:
    """How many floating-point numbers each message of a step has."""
    return [size for _, size, kind in step if kind.startswith("float")]


def flags(step: Sequence[Message]) -> list[int]:
    """The same of its other messages: counters of batch norm, whether somebody was asked to stop, whether to save."""
    return [size for _, size, kind in step if not kind.startswith("float")]
