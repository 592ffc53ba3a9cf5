"""The processes of a run, beside their training: they agree on a run folder, and one that fails ends them all."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import ClassVar

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined] # documented there

from mtl_lightning.errors import ConfigError, MTLError, TrainingError

LAUNCHED = "MTL_LIGHTNING_RUN"
"""Environment variable that tells processes started by another one of the run where the first one is: host:port:process."""
MEET = 600.0
"""Seconds to wait for the first process, which may be started later or import more slowly."""
POLL = 0.5
GRACE = 10.0
"""Seconds that a process has to end by itself when another one has failed; one that waits for that one never will."""
LEAVE = 60.0
"""Seconds that a process may take to end once it is about to, and that the first one waits for those not yet there."""


class Peers:
    """What the processes of a run tell each other through a small store, which needs no common disk.

    A thread watches for the failure of another one: a process that waits for it in a collective operation would wait for ever
    (or as long as ``timeout`` of the strategy says). It ends without an error of its own, so that one message is printed.

    Args:
        address: host and port.
        first: whether this is the first process.
        hosts: whether it serves the store.
        number: which run of these processes this is.
        world: how many processes there are; None where it is not known yet.
        wait: seconds to wait for the first process.

    Raises:
        ConfigError: the first process does not answer there, or cannot listen there.
    """

    _kept: ClassVar[list[TCPStore]] = []  # a process group made later at the same address shares the server

    def __init__(
        self, address: tuple[str, int], first: bool, hosts: bool, number: int = 0, world: int | None = None, wait: float = MEET
    ) -> None:
        self.first, self.hosts, self.world = first, hosts, world
        self.at_end: Callable[[], object] = lambda: None
        self._wait = wait
        if hosts:
            self._kept.append(_connect(address, True, wait))
        self.address = (address[0], self._kept[-1].port if hosts and not address[1] else address[1])
        mark = f"mtl_lightning/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{number}"
        # The thread has a connection of its own: one that waits holds its connection.
        self._store, self._ears = (PrefixStore(mark, _connect(self.address, False, wait)) for _ in range(2))
        self._first_to_fail: bool | None = None
        self._over = threading.Event()
        self._store.add("here", 1)
        threading.Thread(target=self._watch, daemon=True, name="peers").start()

    def agree(self, decide: Callable[[], str]) -> str:
        """What the first process decides, on all.

        Args:
            decide: called on the first process alone.

        Raises:
            ConfigError: it said nothing in time.
            TrainingError: it has failed.
        """
        if self.first:
            self._store.set("decision", decision := decide())
            return decision
        end = time.monotonic() + self._wait
        while not self._store.check(["decision"]):
            if self._store.check(["failed"]):
                raise TrainingError(f"{_place(self.address)} has failed; its output says why")
            if time.monotonic() > end:
                raise ConfigError(f"{_place(self.address)} does not name a run folder in {self._wait:.0f} s; look at its output")
            time.sleep(POLL / 5)
        return self._store.get("decision").decode()

    def fail(self) -> bool:
        """Tell the others that this process ends with an error.

        Returns:
            Whether it is the first to; if not, its error is the same as another's, or follows from it.
        """
        if self._first_to_fail is None:
            self._first_to_fail = True
            with suppress(DistError):
                self._first_to_fail = bool(self._store.add("failed", 1) == 1)
        return self._first_to_fail

    def leave(self, wait: bool = True) -> None:
        """Watch no longer.

        Args:
            wait: whether the process that serves the store stays until the others need it no more.
        """
        if self._over.is_set():
            return
        self._over.set()
        with suppress(DistError):
            self._store.add("left", 1)
            begin = time.monotonic()
            while wait and self.hosts and not self._alone(time.monotonic() - begin):
                time.sleep(POLL / 10)

    def _alone(self, waited: float) -> bool:
        here, left = (self._store.add(key, 0) for key in ("here", "left"))
        # One that was killed never says that it leaves; one that is still being started has nobody to tell it why.
        return (left >= max(here, self.world or 0)) or waited > (LEAVE if here < (self.world or 0) else 2 * GRACE)

    def _watch(self) -> None:
        why = ""
        try:
            while not self._ears.check(["failed"]):
                if self._over.wait(POLL):
                    return
        except DistError:
            why = f"error: {_place(self.address)} is gone; what was saved stands, and --ckpt_path last goes on from there"
        if self._over.wait(LEAVE if self._first_to_fail is not None else GRACE):
            return
        if why:
            print(why, file=sys.stderr)
        self.at_end()
        self._over.set()
        with suppress(DistError):
            self._ears.add("left", 1)
        sys.stdout.flush()
        sys.stderr.flush()
        # Nothing else ends a thread that waits in a collective operation.
        os._exit(1)


def _connect(address: tuple[str, int], serve: bool, wait: float) -> TCPStore:
    host, port = address
    try:
        return TCPStore(host, port, is_master=serve, timeout=timedelta(seconds=wait), wait_for_workers=False, multi_tenant=serve)
    except DistError as error:
        said = str(error).splitlines()[0]
        if serve:
            raise ConfigError(
                f"the first process cannot listen at {host}:{port}: {said}; set MASTER_PORT to a free one"
            ) from error
        raise ConfigError(
            f"{_place(address)} did not answer in {wait:.0f} s: {said}; look whether it runs, and whether MASTER_ADDR and "
            "MASTER_PORT are the same everywhere"
        ) from error


def _place(address: tuple[str, int]) -> str:
    return f"the first process of the run ({address[0]}:{address[1]})"


def _environment() -> ClusterEnvironment | None:
    """Of the environments that start all processes, in the trainer's order."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment):
        if kind.detect():
            return kind()
    return None


def meet(number: int) -> Peers | None:
    """The other processes of this run, where it is one of several already: started by a cluster, by hand, or by the first one.

    By hand means that ``LOCAL_RANK`` or ``NODE_RANK`` say which process this is, ``MASTER_ADDR`` and ``MASTER_PORT`` where the
    first one is, and ``WORLD_SIZE``, if it is set, how many there are.

    Args:
        number: which run of this process it is.
    """
    environment, given = _environment(), os.environ
    if environment is not None:
        size, first = environment.world_size(), environment.global_rank() == 0
        if size < 2:
            return None
        served = given.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return Peers((environment.main_address, environment.main_port), first, first and not served, number, size)
    node, local = int(given.get("NODE_RANK", given.get("GROUP_RANK", 0))), int(given.get("LOCAL_RANK", 0))
    if LAUNCHED in given and local:
        host, port, starter = given[LAUNCHED].rsplit(":", 2)
        met = threading.Event()
        threading.Thread(target=_leave_with, args=(int(starter), met), daemon=True, name="starter").start()
        peers = Peers((host, int(port)), False, False, 0)
        met.set()
        return peers
    by_hand = LAUNCHED not in given and ("LOCAL_RANK" in given or "NODE_RANK" in given)
    if not by_hand or not {"MASTER_ADDR", "MASTER_PORT"} <= given.keys():
        return None
    first, world = node == local == 0, int(given["WORLD_SIZE"]) if "WORLD_SIZE" in given else None
    if world == 1:
        return None
    return Peers((given["MASTER_ADDR"], int(given["MASTER_PORT"])), first, first, number, world)


def _leave_with(starter: int, met: threading.Event) -> None:
    """End this process where the one that started it has ended, until both have met.

    It may have been ended while this one was still importing, and there is nobody to answer then.
    """
    # Windows does not tell of a parent that ended.
    while os.name == "posix" and not met.wait(POLL):
        if os.getppid() != starter:
            os._exit(1)


def out_of_touch(error: BaseException) -> MTLError | None:
    """What to say where another process went without a word; None for other errors."""
    said = str(error).splitlines()[0] if str(error) else ""
    torchs = isinstance(error, RuntimeError) and ("gloo" in said or "onnection closed by peer" in said)
    if torchs or isinstance(error, DistError):
        return TrainingError(
            f"another process of the run ended without a message, or did not answer in time ({said[:200]}): was it killed, or "
            "out of memory? What was saved stands, and --ckpt_path last goes on from there"
        )
    return None
