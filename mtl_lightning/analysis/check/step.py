"""The size of the network, and what one training step takes, measured in the trainer itself."""

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mtl_lightning.analysis.model_summary import ModelSummary
from mtl_lightning.analysis.network import summary_of, write_network

STEPS = 6
"""Steps at most: the first warms up, the second counts memory, the others are timed."""
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Measured(Exception):
    """Ends the fit when enough was measured; nothing is saved by then."""


@dataclass
class StepCost:
    """One training step.

    Attributes:
        device: where it ran.
        parameters: per part, all and those that learn.
        batch_size: rows of the batch.
        seconds: median of forward, backward and optimizer.
        waiting: median of the time until the next batch was there.
        timed: steps behind the medians; 0 if only the first, slow one could be taken.
        bytes: of the weights, gradients, the optimizer's state, what the forward pass keeps for the backward pass, the batch.
        network: parameters and FLOPs by who uses them.
        peak: CUDA: the most that tensors took; CPU: growth of the process's resident memory; None if not known.
    """

    device: str = ""
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)
    batch_size: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    timed: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    peak: int | None = None
    network: ModelSummary | None = None


def measure(trainer: Trainer, module: pl.LightningModule, datamodule: pl.LightningDataModule) -> StepCost:
    """Take a few steps of a fit and stop; weights change in memory only."""
    probe = next(callback for callback in trainer.callbacks if isinstance(callback, StepProbe))  # type: ignore[attr-defined]
    with suppress(Measured):
        trainer.fit(module, datamodule=datamodule)
    return probe.cost


class StepProbe(Callback):
    """Measures the first steps of a fit, then ends it by raising :class:`Measured`."""

    def __init__(self) -> None:
        self.cost = StepCost()
        self._seconds: list[float] = []
        self._waiting: list[float] = []
        self._clock = 0.0
        self._hooks: saved_tensors_hooks | None = None
        self._kept: dict[int, int] = {}
        self._resident = 0

    def on_train_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:
        """Count parameters and start the meters."""
        row = trainer.datamodule.first_row().inputs  # type: ignore[attr-defined]
        self.cost.network = summary_of(pl_module, row)
        write_network(self.cost.network, pl_module, row, Path(trainer.default_root_dir))
        device = pl_module.device
        self.cost.device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
        self.cost.parameters = {name: _size(part) for name, part in _parts(pl_module).items()}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._resident = _reset_peak()
        self._clock = self._now(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        now = self._now(pl_module)
        self._waiting.append(now - self._clock)
        self.cost.batch_size = max(self.cost.batch_size, len(batch))
        if batch_idx == min(1, int(trainer.num_training_batches) - 1):
            tensors = [*batch.inputs.values(), *batch.targets.values(), *batch.labelled.values()]
            self.cost.bytes["batch"] = _bytes(tensors)
            own = {tensor.untyped_storage().data_ptr() for tensor in (*pl_module.parameters(), *pl_module.buffers(), *tensors)}
            self._count_kept(own)
        self._clock = self._now(pl_module)

    def _count_kept(self, own: set[int]) -> None:
        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                self._kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        self._hooks = saved_tensors_hooks(keep, lambda tensor: tensor)
        self._hooks.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """The forward pass keeps nothing more."""
        self._leave()

    def _leave(self) -> None:
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
            self._hooks = None
            self.cost.bytes["kept for the backward pass"] = sum(self._kept.values())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Gradients are there."""
        self.cost.bytes["gradients"] = _bytes(p.grad for p in pl_module.parameters() if p.grad is not None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done; enough steps end it all."""
        now = self._now(pl_module)
        self._seconds.append(now - self._clock)
        self._clock = now
        if batch_idx + 1 >= min(STEPS, int(trainer.num_training_batches)):
            self._finish(trainer, pl_module)
            raise Measured

    def on_exception(self, trainer: Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the hooks away."""
        self._leave()

    def _finish(self, trainer: Trainer, module: pl.LightningModule) -> None:
        cost, timed = self.cost, self._seconds[2:]
        cost.seconds, cost.timed = median(timed or self._seconds[-1:]), len(timed)
        cost.waiting = median(self._waiting[2:] or self._waiting[-1:])
        cost.bytes["weights"] = _bytes([*module.parameters(), *module.buffers()])
        state = (value for values in trainer.optimizers[0].state.values() for value in values.values())
        cost.bytes["optimizer's state"] = _bytes(value for value in state if isinstance(value, Tensor))
        if module.device.type == "cuda":
            cost.peak = torch.cuda.max_memory_allocated(module.device)
        elif self._resident:
            cost.peak = max(0, _status("VmHWM") - self._resident)

    @staticmethod
    def _now(module: pl.LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.monotonic()


def _parts(module: Any) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {"encoder and architecture": module.model.architecture}
    parts |= {f"head of {name}": head for name, head in module.model.heads.items()}
    return parts | {"weighting": module.weighting}


def _size(part: nn.Module) -> tuple[int, int]:
    parameters = list(part.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _status(key: str) -> int:
    """A number of bytes from the kernel's report on this process; 0 where there is none."""
    found = re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE) if STATUS.exists() else None
    return int(found.group(1)) * 1024 if found else 0


def _reset_peak() -> int:
    """Forget the highest resident memory so far, and tell the present one; 0 where the kernel does not allow it."""
    try:
        RESET.write_text("5", encoding="ascii")
    except OSError:
        return 0
    return _status("VmRSS")
