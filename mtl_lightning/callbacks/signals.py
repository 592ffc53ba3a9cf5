"""Ctrl-C that lets a step be finished."""

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """The first Ctrl-C asks for an end between two steps, the second one ends the process at once.

    Attributes:
        asked: whether there was one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def listen(self) -> None:
        """Take Ctrl-C over; only the main thread can."""
        if threading.current_thread() is threading.main_thread() and self._before is None:
            self.asked = False
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.leave()
        print("\nStopping after this step; Ctrl-C again stops at once.", flush=True)

    def leave(self) -> None:
        """Give Ctrl-C back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
