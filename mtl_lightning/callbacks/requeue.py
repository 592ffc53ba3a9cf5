"""SLURM: which signal asks for a requeue, and asking for it."""

import os
import signal
import subprocess
import threading

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]


def requeue_signal(trainer: pl.Trainer) -> int | None:
    """The signal by which SLURM says that a job is to be requeued; None where it does not."""
    # There is no public way to the environment of a single device.
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal is not None:
        return int(environment.requeue_signal)
    return None


def never_requeue(trainer: pl.Trainer) -> None:
    """For what is no training: Lightning would save something, ask for a requeue, and go on."""
    environment = trainer._accelerator_connector.cluster_environment
    if (number := requeue_signal(trainer)) is not None and isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, signal.SIG_IGN)


def requeue() -> str:
    """Put this job into the queue again; what came of it, in words."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID", "")
    if array is not None:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"The job was NOT requeued ({error}): run {' '.join(command)} yourself."
    if done.returncode:
        return f"The job was NOT requeued ({done.stderr.strip() or done.returncode}): run {' '.join(command)} yourself."
    return f"SLURM job {job} is requeued."
