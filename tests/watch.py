"""Callbacks that look at a run."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor


class Watch(Callback):
    """Keeps the encoder's state after every batch, and which of its parameters had a gradient in every optimizer step."""

    states: ClassVar[list[tuple[int, dict[str, Tensor]]]] = []
    learnt: ClassVar[list[tuple[int, set[str]]]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.model.architecture.encoder.named_parameters()
        self.learnt.append((trainer.current_epoch, {name for name, parameter in named if parameter.grad is not None}))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        state = pl_module.model.architecture.encoder.state_dict()
        self.states.append((trainer.current_epoch, {key: tensor.clone() for key, tensor in state.items()}))


class SameEverywhere(Callback):
    """Ends the run unless all processes have the same weights, bit for bit, after every optimizer step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        mine = torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()])
        everyone = pl_module.all_gather(mine)
        assert trainer.world_size == 1 or trainer.world_size == len(everyone)
        for other in everyone if trainer.world_size > 1 else ():
            assert torch.equal(mine, other), f"processes differ after batch {batch_idx} of epoch {trainer.current_epoch}"


class InParts(Callback):
    """Ends the run unless this process has its part alone of the network's weights, gradients and optimizer state."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        weights = list(pl_module.model.parameters())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        moments = [value for weight in weights for value in optimizer.state.get(weight, {}).values() if value.ndim]
        for tensors in (weights, gradients, moments):
            assert all(isinstance(tensor, DTensor) for tensor in tensors)
            mine = sum(tensor.to_local().numel() for tensor in tensors)
            # Rows are not cut, and the first process has the odd one.
            assert mine <= sum(tensor.numel() / trainer.world_size + tensor[0].numel() for tensor in tensors)
