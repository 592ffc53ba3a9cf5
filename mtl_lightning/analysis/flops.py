"""FLOPs of a forward pass, counted by torch, without leaving a trace in the network."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mtl_lightning.errors import MTLError
from mtl_lightning.features import Features
from mtl_lightning.heads.base import Head
from mtl_lightning.model import MultiTaskModel

HEAVY = re.compile(r"rnn|lstm|gru|attention|fft|conv|mm|mv$|dot$|cdist")
"""Names of operations that cost about as much as a matrix product, or are one."""


@dataclass(frozen=True)
class Flops:
    """What one row costs; a multiplication with its addition is 2, and only matrix products and convolutions count.

    Attributes:
        together: all tasks in one forward pass.
        alone: each task by itself, with everything that it needs.
        heads: of that, each task's head.
        uncounted: operations torch has no count for.
    """

    together: int
    alone: dict[str, int]
    heads: dict[str, int]
    uncounted: tuple[str, ...] = ()

    @property
    def singles(self) -> int:
        """The tasks one after the other."""
        return sum(self.alone.values())

    @property
    def saved(self) -> float:
        """How many times as much the tasks cost one after the other."""
        return self.singles / self.together if self.together else 1.0


@contextmanager
def undisturbed(model: MultiTaskModel) -> Iterator[None]:
    """Forward passes in evaluation mode without gradients, after which modes and random streams are what they were."""
    modes = {module: module.training for module in model.modules()}
    cards = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # Attention as plain matrix products: fused kernels are not counted on every device, nor is what was compiled.
        eager = torch.compiler.set_stance("force_eager")
        with eager, torch.no_grad(), torch.random.fork_rng(devices=cards), sdpa_kernel(SDPBackend.MATH):
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes.items():
            module.training = training


def sources(model: MultiTaskModel, inputs: Mapping[str, Tensor]) -> dict[str, tuple[Features, list[str]]]:
    """Each input in the network's precision and place, and the tasks that read it."""
    like = next((value for value in model.parameters() if value.is_floating_point()), torch.zeros(()))
    found = {}
    for name, tasks in model.read_by(inputs).items():
        tensor = inputs[name].to(like.device)
        found[name] = (Features(tensor.to(like.dtype) if tensor.is_floating_point() else tensor), tasks)
    return found


def count_flops(model: MultiTaskModel, inputs: Mapping[str, Tensor]) -> Flops | str:
    """FLOPs of all tasks together and of each alone.

    The heads run once each; the architecture once for all tasks and, unless they read the same pyramid, once for each. Tasks
    that read the same input through parameters of the same shapes cost the same, and are counted once.

    Args:
        model: left as it is, batch norm's statistics and random streams included.
        inputs: of one row, as for the model.

    Returns:
        The counts, or in words why there are none.

    Raises:
        MTLError: the network refuses the input.
    """
    try:
        with undisturbed(model):
            return _count(model, inputs)
    except MTLError:
        raise
    except Exception as error:
        # Whatever a counter that takes operations apart may stumble over: the run itself may well be fine.
        return f"FLOPs could not be counted ({type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]})"


def _count(model: MultiTaskModel, inputs: Mapping[str, Tensor]) -> Flops:
    together, alone, heads, unknown = 0, {}, {}, set[str]()
    shapes = _shapes(model)

    def count(function: Callable[[], Any]) -> tuple[int, Any]:
        with _Uncounted() as watch, FlopCounterMode(display=False) as counter:
            result = function()
        unknown.update(watch.names)
        return counter.get_total_flops(), result

    for source, tasks in sources(model, inputs).values():
        architecture = model.architecture

        def features(wanted: Collection[str], source: Features = source) -> dict[str, list[Features]]:
            return architecture(source, wanted)  # type: ignore[no-any-return] # noqa: B023

        cost, pyramids = count(lambda: features(tasks))  # noqa: B023
        together += cost
        height = source.tensor.shape[-2] if source.tensor.ndim > 2 else 1
        size = (height, source.tensor.shape[-1])
        known: dict[object, int] = {}
        for name in tasks:
            head = cast(Head, model.heads[name])
            heads[name], _ = count(lambda: head(pyramids[name], size))  # noqa: B023
            if shapes[name] not in known:
                known[shapes[name]] = cost if architecture.common else count(lambda: features([name]))[0]  # noqa: B023
            together += heads[name]
            alone[name] = known[shapes[name]] + heads[name]
    order = list(model.heads)
    return Flops(together, {n: alone[n] for n in order}, {n: heads[n] for n in order}, tuple(sorted(unknown)))


def _shapes(model: MultiTaskModel) -> dict[str, tuple[torch.Size, ...]]:
    """Of the architecture's parameters that each task uses, sorted."""
    owners = model.architecture.owners()
    return {name: tuple(sorted(value.shape for value, users in owners.items() if name in users)) for name in model.heads}


class _Uncounted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes costly operations that the counter lets pass."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        if packet not in flop_registry and HEAVY.search(packet.__name__):
            self.names.add(packet.__name__)
        return func(*args, **(kwargs or {}))
