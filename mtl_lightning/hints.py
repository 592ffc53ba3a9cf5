"""Whether a configuration's values are of the types that the classes they are for ask for."""

import collections.abc
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from mtl_lightning.typos import defaults, find_class, is_class, parameters

LISTS = (list, tuple, Sequence, collections.abc.Iterable, set)
SHOWN = 12
"""Choices that fit into a message."""


@dataclass(frozen=True)
class Wrong:
    """A value of another type than its key takes.

    Attributes:
        key: where it is, from the top.
        value: what was written.
        expected: in words.
    """

    key: str
    value: Any
    expected: str


def options(hint: Any) -> tuple[Any, ...]:
    """The types that a union is of, or the one."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return options(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(part for each in typing.get_args(hint) for part in options(each))
    return (type(None),) if hint is None else (hint,)


def describe(hint: Any) -> str:
    """A type in words, null last."""
    found = [_word(each) for each in options(hint)]
    return " or ".join(dict.fromkeys(sorted(found, key=lambda word: word == "null")))


def _word(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"{', '.join(map(repr, inner[:SHOWN]))}{', …' * (len(inner) > SHOWN)}"
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)}: {', '.join(map(describe, inner))}"
    if origin in LISTS:
        return f"a list of {describe(inner[0])}" if inner and Any not in inner else "a list"
    if hint in (list, tuple):
        return "a list"
    if hint is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return f"keys, each with {describe(inner[-1])}" if inner and Any not in inner else "keys with values"
    if origin is Callable:
        return _word(inner[-1])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(each.name for each in hint)
    names = {type(None): "null", Path: "a path", Any: "any value", str: "text", int: "int", float: "float", bool: "true or false"}
    if hint in names:
        return names[hint]
    name = getattr(hint, "__name__", str(hint))
    return f"the keys of {name}" if hasattr(hint, "__dataclass_fields__") else f"a class ({name})"


class Types:
    """Compares a configuration with the types that its classes ask for.

    Args:
        roots: the type of every top key.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self.roots = roots
        self.classes: dict[str, Callable[..., Any]] = {}

    def __call__(self, config: Mapping[Any, Any]) -> Iterator[Wrong]:
        """Args: config: a file's, or one argument's of the command line; later ones may rely on the classes of earlier ones."""
        yield from self._arguments("", config, self.roots, {})

    def _arguments(
        self, key: str, given: Mapping[Any, Any], known: Mapping[str, Any], default: Mapping[str, Any]
    ) -> Iterator[Wrong]:
        for name, value in given.items():
            # What a class does without by itself it can do without, whatever its signature says.
            if name in known and not (value is None and default.get(name, "") is None):
                yield from self._value(f"{key}.{name}" if key else str(name), value, known[name])

    def _value(self, key: str, value: Any, hint: Any) -> Iterator[Wrong]:
        first: list[Wrong] | None = None
        for each in options(hint):
            if _alike(each, value):
                found = list(self._inside(key, value, each))
                if not found:
                    return
                first = first or found
        yield from first or [Wrong(key, value, describe(hint))]

    def _inside(self, key: str, value: Any, hint: Any) -> Iterator[Wrong]:
        """What is wrong with the parts of a value."""
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin is Callable:
            yield from self._value(key, value, inner[-1])
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            for name, each in value.items():
                if inner[0] is int and not _reads(int, str(name)):
                    yield Wrong(f"{key}.{name}", name, "int as the name of a key")
                yield from self._value(f"{key}.{name}", each, inner[-1])
        elif origin in LISTS:
            kinds = inner if origin is tuple and inner[-1] is not Ellipsis else [inner[0]] * len(value)
            for number, (each, kind) in enumerate(zip(value, kinds, strict=True)):
                yield from self._value(f"{key}[{number}]", each, kind)
        elif _is_class(hint):
            yield from self._object(key, value, hint)

    def _object(self, key: str, value: Any, base: type) -> Iterator[Wrong]:
        path = value.get("class_path", "") if isinstance(value, dict) else value
        if not isinstance(path, str):
            yield Wrong(f"{key}.class_path", path, "the name of a class")
        elif path and (found := find_class(path, base)) is not None:
            self.classes[key] = found
        if isinstance(path, str) and isinstance(value, dict):
            made = self.classes.get(key, base)
            within = bool({"class_path", "init_args", "dict_kwargs"} & set(value))
            arguments = value.get("init_args") if within else value
            place = f"{key}.init_args" if within else key
            if isinstance(arguments, dict):
                yield from self._arguments(place, arguments, parameters(made), defaults(made))
            elif arguments is not None:
                yield Wrong(place, arguments, "the arguments of the class, each with its value")


def _is_class(hint: Any) -> bool:
    return is_class(hint) and not issubclass(hint, Enum)


def _alike(hint: Any, value: Any) -> bool:
    """Whether a value is of a type, apart from its parts; where that cannot be told it is."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if origin is typing.Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        return not isinstance(value, bool) and (isinstance(value, int | hint) or _reads(hint, value))
    if hint in (str, Path):
        return isinstance(value, str | Path)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return isinstance(value, hint) or (isinstance(value, str) and value in hint.__members__)
    if kind in LISTS:
        fixed = kind is tuple and inner and inner[-1] is not Ellipsis
        return isinstance(value, list | tuple) and (not fixed or len(value) == len(inner))
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, dict)
    if kind is Callable or _is_class(hint):
        return isinstance(value, str | dict) or (_is_class(hint) and isinstance(value, hint))
    return True


def _reads(kind: type, value: Any) -> bool:
    """YAML takes ``1e-3`` for text, and the command line for a number."""
    try:
        return isinstance(value, str) and kind(value) is not None
    except ValueError:
        return False
