"""Which key of the configuration a class refused: its constructor knows its arguments, and not where they were written."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from mtl_lightning.errors import ConfigError, MTLError

REFUSALS = (ConfigError, ValueError, TypeError, ArithmeticError, AssertionError, MemoryError, RuntimeError, LookupError)
"""What constructors raise for arguments that they cannot take; torch's raise any of these."""
LENGTH = 300


class Located(ConfigError):
    """A refusal with the key already in it."""


class Builder:
    """Builds what a configuration names, and says where it stands if its class refuses it.

    Args:
        config: the resolved configuration.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def __call__(self, made: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a class or function with its arguments; raises :class:`ConfigError`."""
        try:
            return made(*args, **kwargs)
        except REFUSALS as error:
            key = next(_places("", self.config, made, kwargs), None)
            if isinstance(error, Located) or key is None:
                raise
            raise Located(explain(error, key, made, kwargs)) from error


def origin(error: BaseException) -> BaseException:
    """The error of ours that another one was raised from; where there is none, the first of all."""
    while not isinstance(error, MTLError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def explain(error: Exception, key: str, made: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """A refusal in a user's words.

    Args:
        error: what was raised.
        key: where the arguments stand.
        made: what was called with them.
        arguments: by name.
    """
    cause = origin(error)
    text = " ".join(str(cause).split()) or type(cause).__name__
    text = text if isinstance(cause, MTLError) else _first(text)
    if f"{key}." in text:
        return text
    name = getattr(made, "__name__", key)
    for argument in sorted(arguments, key=len, reverse=True):
        stated, count = re.subn(rf"(?<![\w.\]])[\w.\]\[]*(?<!\w){argument}(?= is | \[)", f"{key}.{argument}", text, count=1)
        if count and isinstance(cause, MTLError):
            return stated
    if isinstance(cause, MTLError):
        return f"{key}: {text}"
    named = [argument for argument in arguments if re.search(rf"(?<!\w){argument}(?!\w)", text)]
    changed = _changed(made, arguments)
    mentioned = [argument for argument in changed if _mentions(text, arguments[argument])]
    # Two that are mentioned have values as any number of the text may be.
    blamed = named or (mentioned if len(mentioned) == 1 else changed)
    if not blamed:
        return f"{key}: {name} refuses its arguments: {text}"
    values = " and ".join(f"{argument if number else f'{key}.{argument}'} is {_short(arguments[argument])}"
                          for number, argument in enumerate(blamed))  # fmt: skip
    return f"{values}, which {name} refuses: {text}"


def _first(text: str) -> str:
    """The beginning of what another library says."""
    return text if len(text) <= LENGTH else f"{text[:LENGTH]}…"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _mentions(text: str, value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and any(
        re.search(rf"(?<![\w.-]){re.escape(told)}(?![\w.]*\w)", text) for told in {str(value), str(float(value))}
    )


def _changed(made: Callable[..., Any], arguments: Mapping[str, Any]) -> list[str]:
    """The arguments that are not as the class has them by itself."""
    try:
        defaults = {name: each.default for name, each in inspect.signature(made).parameters.items()}
    except (ValueError, TypeError):  # written in C
        defaults = {}
    return [name for name, value in arguments.items() if _plain(value) and not _same(defaults.get(name), value)]


def _places(key: str, config: Any, made: Callable[..., Any], arguments: Mapping[str, Any]) -> Iterator[str]:
    """Where a configuration has these arguments of this class."""
    if isinstance(config, Mapping):
        path = config.get("class_path")
        inside = config.get("init_args", {}) if isinstance(path, str) else config
        if (_imported(path) is made if isinstance(path, str) else set(inside) == set(arguments)) and _agree(inside, arguments):
            yield f"{key}.init_args" if isinstance(path, str) else key
        for name, value in config.items():
            yield from _places(f"{key}.{name}" if key else str(name), value, made, arguments)
    elif isinstance(config, list):
        for number, value in enumerate(config):
            yield from _places(f"{key}[{number}]", value, made, arguments)


def _agree(configured: Any, arguments: Mapping[str, Any]) -> bool:
    return isinstance(configured, Mapping) and all(
        _same(configured.get(name), value) for name, value in arguments.items() if _plain(value)
    )


def _same(one: Any, other: Any) -> bool:
    listed = (list, tuple)
    return repr(list(one)) == repr(list(other)) if isinstance(one, listed) and isinstance(other, listed) else one == other


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None
