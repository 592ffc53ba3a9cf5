"""Run folders: a new one for every run, named by the configuration, never overwritten."""

import re
import shutil
from pathlib import Path

import yaml

from mtl_lightning.errors import CheckpointError, ConfigError

CHECKPOINTS = "checkpoints"
BEFORE = ("config.yaml", "model.md", "model.png", "summary.json")
"""What a run writes before its first step."""


def _folders(root: Path, name: str) -> list[Path]:
    """The runs of a name, oldest first."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    numbered = {}
    for path in root.glob(f"{name}*") if root.is_dir() else ():
        if path.is_dir() and (match := pattern.fullmatch(path.name)) and _named(path) == name:
            numbered[int(match.group(1) or 1)] = path
    return [numbered[key] for key in sorted(numbered)]


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
    """Claim ``root/name``, or ``root/name-2`` and so on where that is taken.

    Args:
        root: where the runs are.
        name: from the configuration.
    """
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            pass
        except OSError as error:
            raise ConfigError(
                f"cannot make the run folder {folder}: {error.strerror}; set runs to a folder you can write"
            ) from error
        number += 1


def discard(folder: Path) -> None:
    """Remove a run folder that holds no more than its configuration, the network's page and the rows that were left out."""
    if folder.is_dir() and all(path.name in BEFORE or path.match("left_out_*.txt") for path in folder.iterdir()):
        shutil.rmtree(folder)


def find_checkpoint(root: Path, name: str, which: str | None) -> tuple[Path, Path | None]:
    """The checkpoint that ``--ckpt_path`` means, and the run folder it belongs to.

    Args:
        root: where the runs are.
        name: the run's name.
        which: ``last`` or ``best`` of the latest run of that name, or a path; None takes the best, or the last where there
            is no best (nothing was validated).

    Raises:
        CheckpointError: there is none.
    """
    if which not in ("last", "best", None):
        path = Path(which)
        if not path.is_file():
            raise CheckpointError(f"--ckpt_path {which}: there is no such file; give last, best, or the path of a .ckpt file")
        folder = path.resolve().parent.parent
        return path, folder if path.resolve().parent.name == CHECKPOINTS and (folder / "config.yaml").exists() else None
    runs = _folders(root, name)
    if not runs:
        raise CheckpointError(
            f"--ckpt_path {which or 'best'}: there is no run named '{name}' in {root}; run fit first, or give a path"
        )
    latest, asked = runs[-1], which is not None
    if which is None:
        which = "best" if (latest / CHECKPOINTS / "best.ckpt").is_file() else "last"
    path = latest / CHECKPOINTS / f"{which}.ckpt"
    if not path.is_file():
        option = f"--ckpt_path {which}" if asked else f"no --ckpt_path, so {which}"
        others = [run.name for run in runs[:-1] if (run / CHECKPOINTS / f"{which}.ckpt").is_file()]
        hint = f"; {others[-1]} has one: give its path" if others else "; run fit first"
        raise CheckpointError(f"{option}: the latest run {latest} has no {CHECKPOINTS}/{which}.ckpt{hint}")
    return path, latest
