"""Workers of a loader outlive the signals that ask a run to end: the step that is being finished may need them."""

import multiprocessing
import os
import signal
import threading

ASKING = ("SIGINT", "SIGUSR1", "SIGUSR2")
"""Signals that a terminal or a scheduler sends to all processes of a run."""


def shield(worker: int) -> None:
    """Ignore signals to the whole group, but the parent's order to end; a worker's ``worker_init_fn``.

    Args:
        worker: its number, not used.
    """
    # Forked workers would run the handlers of their parent, which save and requeue.
    for name in ASKING:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    # The sender decides, and only waiting for a signal tells who that was. The parent is whose worker this is, and not the
    # server that may have forked it.
    parent = multiprocessing.parent_process()
    while parent is not None:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent.pid:
            os._exit(0)
