"""CPU seconds of each training step."""

import time

from lightning.pytorch import Callback

times: list[float] = []


class Clock(Callback):
    """From the moment the batch is there to the end of the optimizer's step."""

    def on_train_batch_start(self, *args: object) -> None:
        self._start = time.process_time()

    def on_train_batch_end(self, *args: object) -> None:
        times.append(time.process_time() - self._start)
