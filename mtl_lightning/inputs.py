"""Which task reads which of several inputs."""

from collections.abc import Iterable, Mapping

from mtl_lightning.errors import ConfigError

IMAGE = "image"
"""The input where there is only one."""
TEXT = "text"
"""The same of texts."""


def readers(tasks: Iterable[str], chosen: Mapping[str, str], inputs: Iterable[str]) -> dict[str, list[str]]:
    """The tasks that read each of the inputs; an input that none reads is left out.

    Args:
        tasks: names.
        chosen: task → input (``model.inputs``); a task need not be named where there is one input.
        inputs: that there are.

    Raises:
        ConfigError: it is not said which of several inputs a task reads, or there is no such input.
    """
    known = list(inputs)
    found: dict[str, list[str]] = {}
    for name in tasks:
        read = chosen.get(name, known[0] if len(known) == 1 else None)
        if read not in known:
            said = "is not set" if read is None else f"is {read}"
            raise ConfigError(f"model.inputs.{name} {said}, expected one of the inputs of the data: {', '.join(known)}")
        found.setdefault(read, []).append(name)
    return found
