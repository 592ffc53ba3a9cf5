"""The command line: what it is called with, and how it ends: errors without tracebacks, exit codes that tell."""

import os
import signal
import sys
from typing import NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mtl_lightning.callbacks.signals import Stopped
from mtl_lightning.cli import MTLCLI
from mtl_lightning.config import TaskKeepingParser
from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.data.workers import worker_error
from mtl_lightning.errors import MTLError
from mtl_lightning.exporting import command as export_command
from mtl_lightning.launch import LAUNCHED, meet, out_of_touch
from mtl_lightning.module import MultiTaskModule
from mtl_lightning.terminal import quiet, show_ours
from mtl_lightning.trainer import MultiTaskTrainer

HELP = "Train one network for many tasks from partly labelled data; beside the subcommands below there is export (export --help)."
DEBUG = "MTL_LIGHTNING_DEBUG"
"""Environment variable that, set to anything, shows where an error comes from."""


def main(args: ArgsType = None) -> None:
    """Run the command line.

    Args:
        args: the arguments after the program's name; None takes the process's own.

    Raises:
        SystemExit: with code 1 and one message after an error a user can mend, 2 where the arguments cannot be parsed, 75 where
            SIGTERM ended a run that is saved; 143 and 130 where SIGTERM ended one that is not, and Ctrl-C any.
    """
    quiet()
    show_ours()
    if os.getcwd() not in sys.path and "" not in sys.path:
        # The console script does not look where `python -m` does: for classes of one's own.
        sys.path.insert(0, os.getcwd())
    MTLCLI.claimed = MTLCLI.held = MTLCLI.peers = None
    words = sys.argv[1:] if args is None else args
    MTLCLI.asked = words[0] if isinstance(words, list) and words else None
    # The launcher kills the others when one that it started leaves with another code than 0.
    launched = LAUNCHED in os.environ and rank_zero_only.rank != 0  # type: ignore[attr-defined]
    try:
        if isinstance(words, list) and words[:1] == ["export"]:
            export_command(words[1:])
            return
        peers = MTLCLI.peers = meet(MTLCLI.started)
        TaskKeepingParser.speaks = (lambda: True) if peers is None else peers.fail
        if peers is not None and not peers.first and not rank_zero_only.rank:  # type: ignore[attr-defined]
            # Started by hand with NODE_RANK alone: until the trainer knows better, each node would take itself for the first.
            rank_zero_only.rank = 1  # type: ignore[attr-defined]
        MTLCLI.started += 1
        MTLCLI(
            MultiTaskModule,
            MultiTaskDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            trainer_class=MultiTaskTrainer,
            seed_everything_default=0,
            parser_class=TaskKeepingParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"description": HELP, "prog": "python -m mtl_lightning", "allow_abbrev": False},
            args=args,
        )
    except Stopped as stopped:
        if args is None:
            # A launcher may pass the signal on late, to a process that is leaving.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        raise SystemExit(0 if launched else stopped.code) from None
    except SIGTERMException:
        # Lightning would leave with 0, as if the run were over.
        _give_up("SIGTERM", 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        _give_up("Ctrl-C", 128 + signal.SIGINT)
    except SystemExit as ended:
        if not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        # Lightning's own way to leave.
        _give_up("Ctrl-C", 128 + signal.SIGINT)
    except Exception as raised:
        peers = MTLCLI.peers
        lost = None if peers is None else out_of_touch(raised)
        # torch tells of a dead worker wherever the main process is.
        error, speaks = lost or worker_error(raised) or raised, peers is None or peers.fail()
        if speaks and (os.environ.get(DEBUG) or not (isinstance(error, MTLError) or _from_lightning(error))):
            raise
        MTLCLI.leave_folder()
        if speaks:
            print(f"error: {error}", file=sys.stderr)
        if peers is not None:
            peers.leave(wait=lost is None)
        raise SystemExit(1) from None
    finally:
        if MTLCLI.peers is not None:
            MTLCLI.peers.leave()
        if MTLCLI.held is not None:
            MTLCLI.held.release()


def _give_up(name: str, code: int) -> NoReturn:
    if MTLCLI.peers is not None:
        MTLCLI.peers.fail()
    MTLCLI.leave_folder()
    rank_zero_only(print)(f"{name}: ended, with nothing new saved", file=sys.stderr)
    raise SystemExit(code) from None


def _from_lightning(error: Exception) -> bool:
    """Whether Lightning itself refused something: a value of the trainer's, a device that is not there."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    refused = isinstance(error, MisconfigurationException | ValueError | RuntimeError | ModuleNotFoundError)
    return refused and module.startswith(("lightning.pytorch", "lightning.fabric"))
