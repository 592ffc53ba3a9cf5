"""Sums over processes, and what each of them has to say."""

from typing import Any, TypeVar

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor

T = TypeVar("T")


def add_up(strategy: Strategy, tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, written into it; one message.

    Lightning's ``strategy.reduce`` waits for all processes before it sends: a second message, and on a GPU the end of all work
    that is under way.

    Args:
        strategy: of the trainer.
        tensor: contiguous.
    """
    if isinstance(strategy, DDPStrategy | ModelParallelStrategy):
        dist.all_reduce(tensor)
        return tensor
    return strategy.reduce(tensor, reduce_op="sum")  # type: ignore[return-value]


def gather(mine: T, world: int) -> list[T]:
    """What all processes have, by rank; all of them must call it.

    Args:
        mine: what this process has; it is pickled.
        world: their number.
    """
    if world == 1:
        return [mine]
    found: list[Any] = [None] * world
    dist.all_gather_object(found, mine)
    return found
