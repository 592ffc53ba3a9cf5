"""Signals that let a step be finished and saved before a run ends."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM)
REPEATED = 5.0
"""Seconds in which a signal that comes again is the same request: launchers pass on what its receivers got already."""
SAVED = 75
"""Exit code of a run that SIGTERM, or a requeue, ended with all saved: EX_TEMPFAIL of sysexits.h, which asks to be tried again.
128 + 15 would be that of a process which the signal killed, and nobody could tell whether it had saved."""


class Stopped(SystemExit):
    """A signal ended the run; the process leaves with this code."""


class StopRequest:
    """The first signal asks for an end between two steps, a later one ends the process at once.

    Attributes:
        asked: the number of the signal that asked for it; 0 while none did.
        quiet: says nothing.
        answer: what it says otherwise.
    """

    def __init__(self) -> None:
        self.asked, self.quiet, self.answer = 0, False, ""
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def listen(self, *numbers: int) -> None:
        """Take these signals over; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                if number not in self._before:
                    self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._since = number, time.monotonic()
            if not self.quiet:
                # Not print: the signal may have interrupted one.
                again = f"; the same again after {REPEATED:.0f} s ends it at once" if number in ENDING else ""
                os.write(2, f"\n{signal.Signals(number).name}: {self.answer}{again}.\n".encode())
        elif self.asked in ENDING and time.monotonic() - self._since > REPEATED:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def leave(self) -> None:
        """Give the signals back."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
