"""Run folders: a new one for every run, named by the configuration, never overwritten."""

import logging
import re
import shutil
from pathlib import Path

import yaml

from mtl_lightning.analysis.logged import read_rows
from mtl_lightning.checkpoint import advice, load_checkpoint
from mtl_lightning.errors import CheckpointError, ConfigError
from mtl_lightning.running import RUNNING, check_free
from mtl_lightning.storage import expanded, replace_text

CHECKPOINTS = "checkpoints"
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
CONFIG = "config.yaml"
BEFORE = (CONFIG, "model.md", "model.png", "summary.json", RUNNING)
"""What a run writes before its first step."""
FINISHED = "finished"
"""Is there once a run has come to its end and its report is written."""
logger = logging.getLogger(__name__)


def _numbered(root: Path, name: str) -> dict[int, Path]:
    """The runs of a name, by number; with them those that are trained and whose configuration cannot be read."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    numbered = {}
    for path in root.glob(f"{name}*") if root.is_dir() else ():
        if path.is_dir() and (match := pattern.fullmatch(path.name)) and _may_be(path, name):
            numbered[int(match.group(1) or 1)] = path
    return numbered


def _folders(root: Path, name: str) -> list[Path]:
    """The runs of a name, oldest first."""
    numbered = _numbered(root, name)
    return [numbered[key] for key in sorted(numbered)]


def _may_be(folder: Path, name: str) -> bool:
    named = _named(folder)
    return named == name or (named is None and any(_kept(folder, which) for which in ("last", "best")))


def _named(folder: Path) -> str | None:
    """The name in a run's configuration: ``net-18`` may be the eighteenth run of ``net``, or the first of ``net-18``."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return config.get("name") if isinstance(config, dict) else None


def check_name(name: str) -> None:
    """Raise :class:`ConfigError` unless a folder can be called so."""
    if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", name) or name in (".", ".."):
        raise ConfigError(f"name is '{name}', expected letters, digits, '_', '-' and '.'; the run's folder gets it")


def new_folder(root: Path, name: str) -> Path:
    """Claim ``root/name``, or ``root/name-2`` and so on: a number above those of all runs of that name, so that it is the latest.

    Args:
        root: where the runs are.
        name: from the configuration.
    """
    number = 1 + max(_numbered(root, name), default=0)
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            # By itself: where its own folder cannot be made, no number is free.
            _make_root(root)
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(
                f"cannot make the run folder {folder}: {error.strerror}; set runs to a folder you can write"
            ) from error


def _make_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(error.errno, f"{root} is there and is no folder") from error


def keep_config(folder: Path, config: str) -> None:
    """Write ``config.yaml``; one with other values stays, as ``config.1.yaml`` and so on.

    It is copied and not renamed: a folder without ``config.yaml`` would be no run for whoever looks for the latest.

    Args:
        folder: of the run.
        config: resolved, YAML.
    """
    file = folder / CONFIG
    before = file.read_text(encoding="utf-8") if file.exists() else config
    if before != config:
        numbers = (path.name.split(".")[1] for path in folder.glob("config.*.yaml"))
        number = max((int(number) for number in numbers if number.isdecimal()), default=0)
        newest = folder / f"config.{number}.yaml"
        # Where a kill came between the two writes it is kept already.
        if not (newest.exists() and newest.read_text(encoding="utf-8") == before):
            replace_text(folder / f"config.{number + 1}.yaml", before)
    replace_text(file, config)


def discard(folder: Path) -> None:
    """Remove a run folder that holds no more than its configuration, the network's page and the rows that were left out."""
    if folder.is_dir() and all(path.name in BEFORE or path.match("left_out_*.txt") for path in folder.iterdir()):
        shutil.rmtree(folder)


def find_checkpoint(root: Path, name: str, which: str | None) -> tuple[Path, Path | None]:
    """The checkpoint that ``--ckpt_path`` means, read once to see that it is whole, and the run folder it belongs to.

    Args:
        root: where the runs are.
        name: the run's name.
        which: ``last`` or ``best`` of the latest run of that name, or a path; None takes the best, or the last where there
            is no best (nothing was validated). A damaged last one is passed over, with a warning, for the one before it.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if which not in ("last", "best", None):
        path = expanded(which)
        if not path.is_file():
            raise CheckpointError(f"--ckpt_path {which}: there is no such file; give last, best, or the path of a .ckpt file")
        load_checkpoint(path)
        folder = path.resolve().parent.parent
        return path, folder if path.resolve().parent.name == CHECKPOINTS and (folder / "config.yaml").exists() else None
    latest = latest_run(root, name)
    if latest is None:
        raise CheckpointError(
            f"--ckpt_path {which or 'best'}: there is no run named '{name}' in {root}; run fit first, or give a path"
        )
    asked = which is not None
    if which is None:
        which = "best" if (latest / CHECKPOINTS / BEST).is_file() else "last"
    if not _kept(latest, which):
        option = f"--ckpt_path {which}" if asked else f"no --ckpt_path, so {which}"
        others = [run for run in _folders(root, name)[:-1] if _kept(run, which)]
        if others:
            hint = f"; {others[-1]} has one: give its path"
        elif _kept(latest, "last"):
            hint = ", only a last one: give last"
        else:
            hint = ": it ended before it saved anything; run fit without --ckpt_path"
        raise CheckpointError(f"{option}: the latest run {latest} has no {CHECKPOINTS}/{which}.ckpt{hint}")
    if which == "last":
        return newest_whole(latest), latest
    path = latest / CHECKPOINTS / BEST
    load_checkpoint(path)
    return path, latest


def latest_run(root: Path, name: str) -> Path | None:
    """The folder of the latest run of a name.

    Raises:
        CheckpointError: it cannot be told whether it is one of that name.
    """
    latest = next(reversed(_folders(root, name)), None)
    if latest is not None and _named(latest) is None:
        raise CheckpointError(
            f"{latest} has checkpoints, and its {CONFIG} is damaged or gone: is it the latest run of '{name}'? If so, write the "
            f"line 'name: {name}' into {latest / CONFIG} (last and auto write the rest); if not, move the folder away"
        )
    return latest


def _kept(run: Path, which: str) -> list[Path]:
    names = (LAST, PREVIOUS) if which == "last" else (BEST,)
    return [path for path in (run / CHECKPOINTS / file for file in names) if path.is_file()]


def newest_whole(run: Path) -> Path:
    """A run's ``last.ckpt``, or ``previous.ckpt`` where that is damaged, or was being renamed when the run was killed.

    Args:
        run: its folder; has one of the two.

    Raises:
        CheckpointError: none can be loaded.
    """
    last = run / CHECKPOINTS / LAST
    faults = [] if last.is_file() else [f"{last}: is not there"]
    for path in _kept(run, "last"):
        try:
            step = load_checkpoint(path, advise=False)["global_step"]
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if faults:
            again = _reached(run) - step
            lost = f"; about {again} steps are trained again" if again > 0 else ""
            logger.warning("WARNING: %s; going on from the one before it, %s of step %d%s", faults[0], path, step, lost)
        return path
    raise CheckpointError(f"{'; '.join(faults)}; {advice(run / CHECKPOINTS / LAST)}")


def _reached(run: Path) -> int:
    """How many steps a run's metrics know of."""
    try:
        return max((int(step) + 1 for step, *_ in read_rows(run / "metrics.csv")), default=0)
    except OSError:
        return 0


def choose_run(root: Path, name: str) -> tuple[bool, str]:
    """What ``--ckpt_path auto`` does.

    Args:
        root: where the runs are.
        name: the run's name.

    Returns:
        Whether the latest run of that name goes on, and a line that says what happens and why.

    Raises:
        ConfigError: it is being trained.
    """
    latest = latest_run(root, name)
    if latest is None:
        return False, f"no run named '{name}' in {root}: a new one starts"
    check_free(latest)
    if not _kept(latest, "last"):
        return False, f"{latest} has no checkpoint: a new run starts"
    if (latest / FINISHED).exists():
        return False, f"{latest} is finished: a new run starts; --ckpt_path last would go on with it"
    return True, f"{latest} goes on"
