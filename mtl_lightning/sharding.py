"""Networks of which every process holds a part: torch's FSDP2. Pure torch."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features
from mtl_lightning.gradients import local
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.objective import Reduce


def shard(model: MultiTaskModel, device: torch.device) -> None:
    """Leave each process its part of the parameters: of every stage, of every head, and of what else there is.

    A part of the network is whole while it runs, forward or backward. The first process's weights are everyone's at the start,
    and its running statistics in every forward pass.

    Args:
        model: the network, the same on all processes.
        device: to be on.

    Raises:
        ConfigError: its architecture reads parameters elsewhere, or it has such as cannot be cut up.
    """
    architecture = model.architecture
    if not architecture.shards:
        raise ConfigError(
            f"model.architecture {type(architecture).__name__} reads parameters outside of their module's forward pass, and with "
            "trainer.strategy FullySharded they are whole there alone; set trainer.strategy to ddp, or take HardSharing"
        )
    if scalars := [name for name, parameter in model.named_parameters() if not parameter.ndim]:
        raise ConfigError(f"{', '.join(scalars)} are single numbers, which FSDP cannot cut up; set trainer.strategy to ddp")
    _look_into_features()
    model.to(device)
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.data, 0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    stages = dict.fromkeys(stage for copies in architecture.stages() for stage in copies)
    count = len(list(model.parameters()))
    for part in [*stages, *model.heads.values(), model]:
        # Gathered anew in each pass: a backward pass need not come, and the optimizer's step changes what was gathered.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    if len(list(model.parameters())) != count:
        raise ConfigError(
            "stages or heads of the network have a weight in common, which FSDP would part; set trainer.strategy to ddp"
        )
    for way in ("features", "predict"):
        register_fsdp_forward_method(model, way)
    architecture.register_forward_pre_hook(lambda *_: _follow(list(model.buffers())))


@cache
def _look_into_features() -> None:
    # FSDP2 finds the tensors that a part gives by it, and so the moment to gather the part for its backward pass.
    torch.export.register_dataclass(Features)


def _follow(buffers: Sequence[Tensor]) -> None:
    """Take over the first process's buffers, as under DistributedDataParallel."""
    for kind in dict.fromkeys(buffer.dtype for buffer in buffers):  # no set: its order is each process's own
        same = [buffer.data for buffer in buffers if buffer.dtype == kind]
        message = torch.cat([buffer.flatten() for buffer in same])
        dist.broadcast(message, 0)
        for buffer, part in zip(same, torch.split(message, [buffer.numel() for buffer in same]), strict=True):
            buffer.copy_(part.view_as(buffer))


def whole(state: Any) -> Any:
    """A state with everything in it gathered, as one process alone would have it; all processes call it together."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return type(state)((key, whole(value)) for key, value in state.items())
    return [whole(value) for value in state] if isinstance(state, list) else state


def part_of(value: Any, like: Any) -> Any:
    """This process's part of a whole value, where ``like`` is in parts and of the same shape."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def parts_of_model(state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """A whole ``state_dict`` as this process's module takes it."""
    mine = module.state_dict()
    return {key: part_of(value, mine.get(key)) for key, value in state.items()}


def parts_of_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole state of an optimizer as this process's takes it."""
    places = [place for group in state["param_groups"] for place in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    owner = dict(zip(places, parameters, strict=True))
    parts = {
        place: {key: part_of(value, owner[place]) for key, value in values.items()} for place, values in state["state"].items()
    }
    return {**state, "state": parts}


def average(parameters: Sequence[nn.Parameter], reduce: Reduce, world: int) -> None:
    """Make gradients of whole parameters the mean over processes, as those in parts are already.

    Args:
        parameters: outside of the network.
        reduce: sums over processes.
        world: their number.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = reduce(parameter.grad.contiguous()) / world


def clip_norm(parameters: Sequence[nn.Parameter], limit: float, reduce: Reduce) -> None:
    """Clip the norm of all gradients together, those in parts and whole ones.

    Args:
        parameters: with gradients.
        limit: of their norm.
        reduce: sums over processes.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    zero = local(gradients[0]).new_zeros(())
    squares = [zero, zero]
    for gradient in gradients:
        squares[isinstance(gradient, DTensor)] = squares[isinstance(gradient, DTensor)] + local(gradient).square().sum()
    norm = (squares[0] + reduce(squares[1])).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local(gradient).mul_(factor)
