"""Reading the configuration: its own entries, and a later file that must not make tasks disappear."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.pytorch.cli import LightningArgumentParser

from mtl_lightning.checks import above, at_least
from mtl_lightning.errors import ConfigError


@dataclass
class CheckpointOptions:
    """When to save, and which epoch is the best.

    Attributes:
        monitor: the logged value that best.ckpt follows.
        mode: whether it is to be large or small; null knows it from the value: losses small, the score large, a metric as its
            task says.
        every_n_steps: optimizer steps between saves of last.ckpt within an epoch; it is always saved at an epoch's end.
        every_minutes: minutes between saves of last.ckpt within an epoch; null saves at an epoch's end alone.
        previous: keep the last.ckpt that is replaced as previous.ckpt, in case the disk damages the new one; costs its space.
    """

    monitor: str = "val/score"
    mode: Literal["min", "max"] | None = None
    every_n_steps: int | None = None
    every_minutes: float | None = 15.0
    previous: bool = True

    def __post_init__(self) -> None:
        """Refuse spans of no length."""
        if self.every_n_steps is not None:
            at_least("checkpoint.every_n_steps", self.every_n_steps, 1)
        if self.every_minutes is not None:
            above("checkpoint.every_minutes", self.every_minutes, 0)


@dataclass
class TrackingOptions:
    """What a W&B logger gets beside numbers.

    Attributes:
        samples: validation samples whose predictions are sent as pictures, the same ones every time; 0 for none.
        every_n_epochs: epochs between them; the first and the last epoch always send them.
    """

    samples: int = 4
    every_n_epochs: int = 5

    def __post_init__(self) -> None:
        """Raise :class:`ConfigError` for numbers out of their ranges."""
        at_least("tracking.samples", self.samples, 0)
        at_least("tracking.every_n_epochs", self.every_n_epochs, 1)


class _KeepTasks(ActionConfigFile):
    """``--config``: a second file replaces a whole dict, so one that names fewer tasks would drop the others unnoticed."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read a file and compare."""
        check_file(Path(str(values)))
        before = _tasks(cfg)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        after = _tasks(cfg)
        lost = [name for name in before if name not in after]
        if lost and after:
            raise ConfigError(
                f"--config {values}: its model.tasks replaces the earlier file's and drops {', '.join(lost)}. "
                f"List all tasks in it, change single values on the command line (--model.tasks.{lost[0]}.init_args.weight 2), "
                "or train some of the tasks with --model.only"
            )


def check_file(file: Path) -> None:
    """Look for what YAML's reader would pass over without a word, or stumble over without one.

    Raises:
        ConfigError: a key is there twice, a value contains itself, or the file is no text.
    """
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is no UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8") from error
    except RecursionError:
        raise ConfigError(f"{file}: its values are nested too deeply to be a configuration") from None
    except (OSError, ValueError, yaml.YAMLError):
        return  # no file, or no YAML: the parser says so
    _check_node(file, "", root, ())


def _check_node(file: Path, key: str, node: yaml.Node | None, above: tuple[int, ...]) -> None:
    if id(node) in above:
        raise ConfigError(f"{file}: {key} contains itself: its anchor is used within it; take the inner *alias out")
    inner = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, each in enumerate(node.value):
            _check_node(file, f"{key}[{number}]", each, inner)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for name, value in node.value:
            place, line = f"{key}.{name.value}".lstrip("."), name.start_mark.line + 1
            if name.value in lines:
                raise ConfigError(
                    f"{file}: {place} is there twice, lines {lines[name.value]} and {line}, and one alone can hold; take one out"
                )
            lines[str(name.value)] = line
            _check_node(file, place, value, inner)


def _tasks(cfg: Namespace) -> list[str]:
    tasks = cfg.get("model.tasks") if cfg is not None else None
    if tasks is None:
        return []
    return list(tasks if isinstance(tasks, dict) else vars(tasks))


class TaskKeepingParser(LightningArgumentParser):
    """Lightning's parser with that check."""

    given: ClassVar[Any] = ()
    """What is being parsed: words, or the configuration itself. The parsers of subcommands see only a part of it."""
    folder: ClassVar[Path] = Path()
    """Where the command was given."""
    speaks: ClassVar[Callable[[], bool]] = staticmethod(lambda: True)
    """Asked once there is an error: whether this of several processes says so."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """As in the parent."""
        if kwargs.get("action") is ActionConfigFile:
            kwargs["action"] = _KeepTasks
        return super().add_argument(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with advice alone: the parent prints a hundred lines of usage before its message."""
        if self.exit_on_error:
            # On first use: it is needed after errors only, and knows the classes that read this file's.
            from mtl_lightning.advice import advise

            if type(self).speaks():
                # While it reads a file, the parser works in that file's folder.
                with contextlib.chdir(self.folder):
                    print(f"error: {advise(message, self.given)}", file=sys.stderr)
            raise SystemExit(2)
        super().error(message, ex)
