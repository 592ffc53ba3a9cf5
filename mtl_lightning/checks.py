"""Ranges of numbers. A comparison with NaN is false, so that it is in none of them; nor is infinity."""

import math

from mtl_lightning.errors import ConfigError

SEEDS = 2**32 - 1
"""The largest seed of numpy's generators."""


def at_least(key: str, value: float, least: float) -> None:
    """Raise :class:`ConfigError` below ``least``. Args: key: as messages name it. value: what was given. least: the lowest."""
    if not least <= value < math.inf:
        raise ConfigError(f"{key} is {value}, expected {least} or more")


def above(key: str, value: float, least: float) -> None:
    """Raise :class:`ConfigError` at ``least`` or below. Args: as in :func:`at_least`."""
    if not least < value < math.inf:
        raise ConfigError(f"{key} is {value}, expected > {least}")


def between(key: str, value: float, least: float, most: float) -> None:
    """Raise :class:`ConfigError` outside. Args: as in :func:`at_least`. most: the highest."""
    if not least <= value <= most:
        raise ConfigError(f"{key} is {value}, expected {least} to {most}")
