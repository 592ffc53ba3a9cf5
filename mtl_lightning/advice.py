"""What to say about a command or configuration that cannot be parsed: which file and key, what is wrong, what to do."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtl_lightning.config import CheckpointOptions, TrackingOptions
from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.hints import Types, Wrong
from mtl_lightning.module import MultiTaskModule
from mtl_lightning.trainer import MultiTaskTrainer
from mtl_lightning.typos import Search, Typo, parameters, suggest

PROGRAM = "python -m mtl_lightning"
COMMAND_LINE = "--"
COMMANDS = ("fit", "validate", "test", "predict", "check", "export")
LENGTH = 500
"""Characters of the parser's own message that are shown where nothing better is known."""

_INVISIBLE = dict.fromkeys([*range(0x200B, 0x2010), 0x2060, 0xFEFF])
_NOISE = re.compile(
    r"^\W*(Subtypes: .*|Errors:|Given value.*|Does not validate against any.*|Expected a <class 'NoneType'>"
    r"|Subclass types expect.*|a (class path \(|dict with).*|Not a valid subclass.*|Expected a (config )?path but .*)$"
)


@dataclass(frozen=True)
class Source:
    """A part of the configuration.

    Attributes:
        name: the file; two dashes for the command line; nothing for a configuration from Python.
        config: its content.
    """

    name: str
    config: Mapping[Any, Any]


def advise(message: str, given: Any) -> str:
    """Say what a user can do.

    Args:
        message: the parser's own.
        given: the arguments: a list of words, or the configuration itself when called from Python.

    Returns:
        One short paragraph.
    """
    message = message.translate(_INVISIBLE)
    words = list(given) if isinstance(given, list | tuple) else []
    command = next((word for word in words if word in COMMANDS), "fit")
    files = [Path(file) for file in _options(words, "--config", "-c")]
    wrong = _wrong_command(message, command) or next(filter(None, map(_wrong_file, files)), None)
    if wrong:
        return wrong
    if "required" in message and (names := re.findall(rf"\b{command}\.([\w.]+)", message)):
        if words and not files:
            return (
                f"--config FILE is missing (or each of model.tasks, model.encoder, model.optimizer and data): {_usage(command)}"
            )
        types = Types(roots(command))
        for source in _sources(words, files):
            for part in types({key: value for key, value in source.config.items() if not isinstance(value, dict)}):
                return f"{_place(source)}{_stated(part)}"
        place = ", ".join(map(str, files)) or "the configuration"
        return f"{place}: {', '.join(names)} missing; add it, and see {PROGRAM} {command} --help"
    sources = list(_sources(words, files)) if words else [Source("", _inner(given))]
    text = _explain(message, sources, command) or _wrong_value(message, sources, command) or shortened(message)
    return text if "--help" in text or ".help " in text else f"{text}\nAll keys: {PROGRAM} {command} --help"


def _usage(command: str) -> str:
    return f"{PROGRAM} {command} --config FILE"


def _wrong_command(message: str, command: str) -> str | None:
    if "subcommand" in message and "not provided" in message:
        return f"a command is missing: {PROGRAM} with one of {', '.join(COMMANDS)}"
    if found := re.search(r"invalid choice: '([^']*)' \(choose from", message):
        return f"there is no command '{found[1]}'.{suggest(found[1], COMMANDS)} All commands: {PROGRAM} --help"
    if "before subcommand" in message:
        return f"--config stands behind the command: {_usage(command)}"
    found = re.search(r"nrecognized arguments: (\S+\.ya?ml)\b", message)
    return f"write --config before {found[1]}: {PROGRAM} {command} --config {found[1]}" if found else None


def _wrong_file(file: Path) -> str | None:
    if not file.is_file():
        # A configuration itself may stand there as well.
        text = str(file)
        return None if ": " in text or "{" in text else f"--config {file}: there is no such file{' but a folder' * file.is_dir()}"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return f"{file}{place}: this is no valid YAML: {error.problem or error.context}; mend it there or just before"
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        return f"{file}: cannot be read as YAML: {' '.join(str(error).split())}"
    if isinstance(content, dict):
        return None
    kind = "is empty" if content is None else f"holds {'a list' if isinstance(content, list) else 'one value'}"
    return f"{file}: {kind}; expected the keys model, data and trainer, each with its entries indented below it"


def _options(words: Sequence[str], *names: str) -> Iterator[str]:
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names and (equals or number + 1 < len(words)):
            yield value if equals else words[number + 1]


def _sources(words: Sequence[str], files: Sequence[Path]) -> Iterator[Source]:
    for file in files:
        content = _parsed(file.read_text(encoding="utf-8") if file.is_file() else str(file))
        if isinstance(content, dict):
            yield Source(str(file), content)
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option.startswith("--") and option != "--config" and not option.endswith(".help"):
            text = value if equals else next(iter(words[number + 1 :]), "")
            config: Any = _parsed(text)
            for part in reversed(option[2:].rstrip("+").split(".")):
                config = {part: config}
            yield Source(COMMAND_LINE, config)


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _inner(given: Any) -> Mapping[Any, Any]:
    config = given.as_dict() if hasattr(given, "as_dict") else given
    inner = config.get(config.get("subcommand"), config) if isinstance(config, dict) else {}
    return inner if isinstance(inner, dict) else {}


def roots(command: str) -> dict[str, Any]:
    """The type of every top key."""
    method = parameters(getattr(MultiTaskTrainer, command, MultiTaskTrainer.fit))
    ours = {"model": MultiTaskModule, "data": MultiTaskDataModule, "trainer": MultiTaskTrainer}
    own = {"checkpoint": CheckpointOptions, "tracking": TrackingOptions, "print_config": Any}
    skipped = ("model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule")
    top = {"name": str, "runs": str, "seed_everything": bool | int}
    rest = {name: hint for name, hint in method.items() if name not in skipped}
    return {**ours, **own, **top, **rest}


def _explain(message: str, sources: Sequence[Source], command: str) -> str | None:
    """Point to the wrong name, if it is one."""
    search = Search(roots(command))
    typos = [(source, typo) for source in sources for typo in search(source.config)]
    key = _key(message)
    # The parser's message decides: what the signatures do not tell may be right.
    reasons = re.sub(r"Given value: .*", "", message)
    named = [each for each in typos if re.search(rf"(?<!\w){re.escape(each[1].name)}(?!\w)", reasons)]
    # Some versions tell only what follows from an unknown argument.
    possible = named or [each for each in typos if key is not None and each[1].about is not None]
    chosen = [each for each in possible if key is None or each[1].key.startswith(key)]
    if not chosen:
        return None
    source, typo = chosen[0]
    return f"{_place(source)}{typo.key}: {typo.text}{_class_help(typo, command)}"


def _place(source: Source) -> str:
    return source.name if source.name in ("", COMMAND_LINE) else f"{source.name}, "


def _class_help(typo: Typo, command: str) -> str:
    """Which command lists the arguments of the class; it is known for what stands at the top of model and data."""
    top = re.match(r"data|model\.(tasks|encoder|optimizer|architecture|weighting)|trainer\.callbacks", typo.key)
    if typo.about is None or top is None or typo.key.count("init_args") != 1:
        return ""
    return f" All its arguments: {PROGRAM} {command} --{top[0]}.help {typo.about}"


def _key(message: str) -> str | None:
    found = re.search(r'Parser key "([^"]+)"', message)
    return found[1] if found else None


def _wrong_value(message: str, sources: Sequence[Source], command: str) -> str | None:
    """Say which value of which key has the wrong type."""
    types, key = Types(roots(command)), _key(message)
    found = [(source, wrong) for source in sources for wrong in types(source.config)]
    # Before anything is parsed, the parser names no key; later, the first that it could not take.
    possible = [each for each in found if key is None or each[1].key.startswith(key)]
    if not possible:
        return None
    source, wrong = possible[0]
    return f"{_place(source)}{_stated(wrong)}"


def _stated(wrong: Wrong) -> str:
    value = "null" if wrong.value is None else _short(repr(wrong.value), 80)
    return f"{wrong.key} is {value}: expected {wrong.expected}"


def shortened(message: str) -> str:
    """The parser's message without what only its authors understand, on one line."""
    lines = [line.strip(" -\t") for line in message.splitlines() if line.strip() and not _NOISE.match(line)]
    text = re.sub(r"<class '([^']+)'>", r"\1", " ".join(lines))
    text = re.sub(r"\.? Got value: (Namespace|\{).*", "", text)
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    # Classes within classes: their keys alone.
    text = re.sub(r": (?:Expected a \w+ )*Problem with given class_path '[^']+': (\w+):(?= )", r".init_args.\1:", text)
    text = re.sub(r"Problem with given class_path '(?:[^']+\.)?(\w+)': ", r"\1: ", text)
    # What a factory's arguments and outcome are does not help who forgot one of its class's.
    text = re.sub(r"Type \S*Callable\[.*?\] expects a function or a callable class: ", "", text)
    return _short(text or " ".join(message.split()), LENGTH)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
