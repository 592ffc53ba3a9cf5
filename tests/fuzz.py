"""Hostile and harmless changes of every leaf of a configuration, made from what the classes it names say they take."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mtl_lightning.config import CheckpointOptions, TrackingOptions
from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.hints import options
from mtl_lightning.module import MultiTaskModule
from mtl_lightning.trainer import MultiTaskTrainer
from mtl_lightning.typos import parameters

HUGE = 2**62
NUMBERS = [-1, 0, HUGE, -0.5, 0.0, 1.5, 7.25, 1e-30, 1e30, float("nan"), float("inf"), -float("inf")]
OTHERS = ["", "nonsense", [], {}, {"nonsense": 1}, [1, "two"], [-1], [0], [0, 0], None, True, 3, 0.25]
ROOTS: dict[str, Callable[..., Any]] = {
    "model": MultiTaskModule,
    "trainer": MultiTaskTrainer,
    "checkpoint": CheckpointOptions,
    "tracking": TrackingOptions,
}
TOP = {"name": str, "runs": str, "seed_everything": bool | int, "weights_only": bool | None}
NOT_WALKED = {
    "logger": "goes beside metrics.csv; tests of tracking give one",
    "callbacks": "go beside the run's own",
    "plugins": "go beside the run's own",
    "profiler": "an object, or a name that prints pages",
    "enable_progress_bar": "is passed on as it suits the terminal",
    "fast_dev_run": "is set for all cases here",
}
"""Of the trainer's arguments those that are left alone, and why."""


@dataclass(frozen=True)
class Leaf:
    """One value of a configuration.

    Attributes:
        path: where it is: keys, and numbers in lists.
        owner: the class that takes it; None for what the program itself takes.
        hint: the type that the owner asks for.
        value: the present one.
    """

    path: tuple[str | int, ...]
    owner: Callable[..., Any] | None
    hint: Any
    value: Any

    @property
    def name(self) -> str:
        """The argument."""
        return str(self.path[-1])

    @property
    def key(self) -> str:
        """As messages write it."""
        return dotted(self.path)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types of which it may be one."""
        return options(self.hint)


def dotted(path: Sequence[str | int]) -> str:
    """Args: path: keys and numbers. Returns: ``a.b[0].c``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def leaves(config: Mapping[str, Any]) -> Iterator[Leaf]:
    """All of a resolved configuration."""
    for name, value in config.items():
        if name in ROOTS:
            known = parameters(ROOTS[name])
            chosen = {key: each for key, each in value.items() if name != "trainer" or key not in NOT_WALKED}
            yield from _arguments((name,), chosen, ROOTS[name], known)
        elif name == "data":
            yield from _value((name,), value, None, MultiTaskDataModule)
        elif name in TOP:
            yield Leaf((name,), None, TOP[name], value)


def _arguments(path: tuple[str | int, ...], given: Mapping[str, Any], owner: Any, known: Mapping[str, Any]) -> Iterator[Leaf]:
    for name, value in given.items():
        yield from _value((*path, name), value, owner, known.get(name, Any))


def _value(path: tuple[str | int, ...], value: Any, owner: Any, hint: Any) -> Iterator[Leaf]:
    if isinstance(value, dict) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        made = getattr(import_module(module), name)
        yield Leaf((*path, "class_path"), None, type, value["class_path"])
        yield from _arguments((*path, "init_args"), value.get("init_args") or {}, made, parameters(made))
    elif isinstance(value, dict) and (record := _record(hint)) is not None:
        yield from _arguments(path, value, record, parameters(record))
    elif isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
        inner = next((get_args(each)[-1] for each in options(hint) if get_origin(each) in (dict, Mapping)), Any)
        for name, each in value.items():
            yield from _value((*path, name), each, owner, inner)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        inner = next((get_args(each)[0] for each in options(hint) if get_origin(each) is list), Any)
        for number, each in enumerate(value):
            yield from _value((*path, number), each, owner, inner)
    else:
        yield Leaf(path, owner, hint, value)


def _record(hint: Any) -> Any:
    return next((each for each in options(hint) if hasattr(each, "__dataclass_fields__")), None)


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a type; of a class, whether it can be a description of one."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is type:
        return True
    if origin in (Union, UnionType):
        return any(fits(each, value) for each in inner)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if hint is None or hint is type(None):
        return value is None
    if hint in (bool, int, float):
        return isinstance(value, (int, float) if hint is float else hint) and isinstance(value, bool) == (hint is bool)
    if hint in (str, Path):
        return isinstance(value, str)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(inner[-1], each) for each in value.values())
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, list) and len(value) == len(inner) and all(map(fits, inner, value))
    if origin in (list, tuple, set, Sequence, Iterable):
        return isinstance(value, list) and all(fits(inner[0], each) for each in value)
    return isinstance(value, str | dict)


def hostile(leaf: Leaf) -> list[Any]:
    """Values that are wrong, or at the edge of what is right."""
    found = [*NUMBERS, *OTHERS]
    if isinstance(leaf.value, list) and leaf.value and all(isinstance(each, int | float) for each in leaf.value):
        found += [[bad, *leaf.value[1:]] for bad in (-1, 0, float("nan"), "text", HUGE)] + [leaf.value * 2, leaf.value[:-1]]
    return [value for value in found if repr(value) != repr(leaf.value)]


def harmless(leaf: Leaf) -> list[Any]:
    """Values that may be right, the first ones sooner."""
    value, kinds = leaf.value, leaf.kinds
    found: list[Any] = []
    for each in kinds:
        if get_origin(each) is Literal:
            found += get_args(each)
    if isinstance(value, bool) or (value is None and bool in kinds):
        found += [True, False]
    elif isinstance(value, int | float):
        found += [value + 0.25, value * 0.5] if float in kinds else []
        found += [value + 1, value - 1, value * 2]
    elif value is None:
        found += ([2, 1] if int in kinds else []) + ([0.5] if float in kinds else [])
        found += ["other"] if str in kinds else []
        found += [["one", "two"]] if list[str] in kinds else []
        found += [[1, 2], [2]] if list[int] in kinds else []
        found += [[0.5, 0.5]] if list[float] in kinds else []
    elif isinstance(value, str):
        found += [value + "x"]
    elif isinstance(value, list) and value:
        number = isinstance(value[0], int | float) and not isinstance(value[0], bool)
        found += [[value[0] + 1, *value[1:]], [*value[:-1], value[-1] / 2]] if number else [[*value[:-1], f"{value[-1]}x"]]
        found += [value[:-1]]
    return [each for each in found if fits(leaf.hint, each) and (each != value or type(each) is not type(value))]
