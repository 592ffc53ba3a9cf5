"""Where a configuration names a class, an argument or a key that does not exist, and what was probably meant."""

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

ENTRIES = {"class_path", "init_args", "dict_kwargs"}
SHOWN = 16
"""Names that fit into a message."""


@dataclass(frozen=True)
class Typo:
    """One wrong name.

    Attributes:
        key: where it is, from the top: ``model.tasks.color.init_args.wieght``.
        name: the wrong name itself.
        text: what is wrong, and what was probably meant.
        about: the class whose arguments were meant, as it is written there.
    """

    key: str
    name: str
    text: str
    about: str | None = None


def suggest(name: str, known: Sequence[str]) -> str:
    """Args: name: what was written. known: what there is. Returns: a sentence, or nothing if all are too many to list."""
    lower = {each.lower(): each for each in known}
    close = [lower[each] for each in get_close_matches(name.lower(), list(lower), n=2, cutoff=0.65)]
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" There are: {', '.join(sorted(known))}." if 0 < len(known) <= SHOWN else ""


class Search:
    """Compares a configuration with the classes that it is for, as far as their signatures say what they take.

    Args:
        roots: the type of every top key.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self.roots = roots
        self.classes: dict[str, tuple[str, Callable[..., Any]]] = {}

    def __call__(self, config: Mapping[Any, Any]) -> Iterator[Typo]:
        """Args: config: a file's, or one argument's of the command line; later ones may rely on the classes of earlier ones."""
        yield from self._arguments("", config, self.roots, "the configuration", None)

    def _arguments(
        self, key: str, given: Mapping[Any, Any], known: Mapping[str, Any], owner: str, about: str | None
    ) -> Iterator[Typo]:
        for name, value in given.items():
            place = f"{key}.{name}" if key else str(name)
            if name in known:
                yield from self._value(place, value, known[name])
            else:
                kind = "argument" if about else "key"
                yield Typo(place, str(name), f"{owner} has no {kind} '{name}'.{suggest(str(name), list(known))}", about)

    def _value(self, key: str, value: Any, hint: Any, passed: int = 0) -> Iterator[Typo]:
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            for each in () if str in inner and isinstance(value, str) else inner:
                yield from self._value(key, value, each)
        elif origin is Callable:
            # It makes what it returns, and is called with its first arguments.
            yield from self._value(key, value, inner[-1], len(inner[0]) if isinstance(inner[0], list) else 0)
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            for name, each in value.items() if isinstance(value, dict) else ():
                yield from self._value(f"{key}.{name}", each, inner[-1])
        elif isinstance(origin, type) and issubclass(origin, Sequence):
            for number, each in enumerate(value if isinstance(value, list) else ()):
                yield from self._value(f"{key}[{number}]", each, inner[0])
        elif is_class(hint):
            yield from self._object(key, value, hint, passed)

    def _object(self, key: str, value: Any, base: type, passed: int) -> Iterator[Typo]:
        path = value.get("class_path") if isinstance(value, dict) else value
        if isinstance(path, str):
            found = find_class(path, base)
            if found is None:
                place = f"{key}.class_path" if isinstance(value, dict) else key
                yield Typo(place, path, f"there is no class '{path}'.{_suggest_class(path, base)}")
                return
            self.classes[key] = path, found
            for name in () if isinstance(value, str) else sorted(set(value) - ENTRIES):
                text = f"arguments of {found.__name__} stand under init_args, not beside class_path: write {key}.init_args.{name}"
                yield Typo(f"{key}.{name}", "class_path", text)
        if isinstance(value, dict) and isinstance(path, str | None):
            about, made = self.classes.get(key, (None, base))
            within = bool(ENTRIES & set(value))
            arguments = value.get("init_args") if within else value
            if isinstance(arguments, dict):
                known = dict(list(parameters(made).items())[passed:])
                owner = made.__name__ if about else key
                yield from self._arguments(f"{key}.init_args" if within else key, arguments, known, owner, about)


def is_class(hint: Any) -> bool:
    """Whether a type is one whose values are named by their classes, and not written as they are."""
    return isinstance(hint, type) and hint is not Any and hint.__module__ not in ("builtins", "pathlib", "datetime")


def find_class(path: str, base: type) -> Callable[..., Any] | None:
    """Args: path: what was written. base: what it must be. Returns: the class of that name, as the command line resolves it."""
    if "." not in path:
        return next((each for each in _subclasses(base) if each.__name__ == path), None)
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if callable(found) else None


def _suggest_class(path: str, base: type) -> str:
    module, _, name = path.rpartition(".")
    found = suggest(path, _names(path, base)) or (module and suggest(name, _names(name, base)))
    return found or " A class of ours is written by its name, any other by its path, package.module.Class."


def _names(path: str, base: type) -> list[str]:
    """What may have been meant."""
    classes = [each for each in _subclasses(base) if not (each.__name__.startswith("_") or inspect.isabstract(each))]
    module = path.rpartition(".")[0]
    if module:
        return [f"{module}.{each.__name__}" for each in classes if each.__module__.startswith(module)] + [
            each.__name__ for each in classes if each.__module__.startswith("mtl_lightning.")
        ]
    return [each.__name__ for each in classes if each is not base]


def _subclasses(base: type) -> Iterator[type]:
    yield base
    below: list[type] = type.__subclasses__(base)
    for each in below:
        yield from _subclasses(each)


def parameters(made: Callable[..., Any]) -> dict[str, Any]:
    """Args: made: a class or function. Returns: the names it takes with their types, those of parents behind ``**kwargs`` too."""
    if not isinstance(made, type):
        return _signature(made)[0]
    known: dict[str, Any] = {}
    for each in made.__mro__[:-1]:
        if "__init__" in vars(each):
            taken, more = _signature(each.__init__)  # type: ignore[misc]
            known = taken | known
            if not more:
                break
    return known


def defaults(made: Callable[..., Any]) -> dict[str, Any]:
    """Args: made: a class or function. Returns: what it takes by itself where nothing is given, parents' included."""
    functions = (
        [vars(each)["__init__"] for each in made.__mro__[:-1] if "__init__" in vars(each)] if isinstance(made, type) else [made]
    )
    found: dict[str, Any] = {}
    for function in functions:
        try:
            listed = inspect.signature(function).parameters.values()
        except ValueError:  # written in C
            continue
        found = {each.name: each.default for each in listed if each.default is not inspect.Parameter.empty} | found
    return found


def _signature(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    try:
        listed = inspect.signature(function).parameters.values()
    except ValueError:  # written in C
        return {}, False
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        hints = {}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = {each.name: hints.get(each.name, Any) for each in listed if each.kind not in variable and each.name != "self"}
    return names, any(each.kind is inspect.Parameter.VAR_KEYWORD for each in listed)
