"""Short trainings in half precision as Lightning runs them: the forward pass under autocast, a loss scaler for fp16."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from tests.methods import NAMES, Run


class Half(Run):
    """A short training in single precision under autocast.

    Args:
        name: of the method.
        half: of autocast; None is without. fp16 has a loss scaler.
        channels_last: order of the memory of pictures and weights.
        options: of the engine.
    """

    def __init__(self, name: str, half: torch.dtype | None, channels_last: bool = False, **options: Any) -> None:
        super().__init__(name, dtype=torch.float32, **options)
        self.model.channels_last = channels_last
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.half, self.seen = half, list[Tensor]()
        self.scaler = GradScaler("cpu", init_scale=2.0**10) if half == torch.float16 else None
        around = self.training.around._replace(context=self._context)
        if self.scaler is not None:
            around = around._replace(scale=lambda: float(self.scaler.get_scale()))  # type: ignore[union-attr]
        self.training.around = around
        for part in (self.method.from_gradients, self.method.from_losses):
            if part is not None:
                part.register_forward_pre_hook(lambda _, args: self.seen.append(args[0]))

    def _context(self) -> Any:
        return nullcontext() if self.half is None else torch.autocast("cpu", dtype=self.half)

    def go(self, steps: int) -> "Half":
        """Take steps, all with one batch."""
        batch = self._batch(0)
        for _ in range(steps):
            self.optimizer.zero_grad()
            with self._context():
                self.training.prepare(batch)
                loss = self.training.objective(batch)
            if self.scaler is None:
                self.training.backward(loss, False)
                self.optimizer.step()
            else:
                self.training.backward(self.scaler.scale(loss), True)
                self.scaler.step(self.optimizer)
                self.scaler.update()
            self.training.finish()
            self.step += 1
            if self.step % 3 == 0:
                self.method.epoch_end(self.losses(), torch.ones(len(NAMES), dtype=torch.bool))
        return self

    def losses(self) -> Tensor:
        """Of that batch now, in full precision."""
        batch = self._batch(0)
        with torch.no_grad():
            return self.training.losses(self.model(batch.inputs), batch).values
