"""Augmentation as a pure function of (seed, epoch, sample), so that resume, workers and ranks agree without loader state."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MASK = (1 << 64) - 1


def mix(seed: int, epoch: int, index: int) -> int:
    """A 64-bit hash of three integers: splitmix64 (Steele, Lea, Flood, OOPSLA 2014) applied to each in turn."""
    state = 0
    for value in (seed, epoch, index):
        state = (state + value + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


@contextmanager
def sample_randomness(seed: int, epoch: int, index: int, restore: bool = True) -> Iterator[None]:
    """Within the block, random numbers depend on the three integers alone.

    Covers torch's default CPU generator and Python's ``random``, the ones that ``torchvision.transforms.v2`` draws from;
    numpy's global state is NOT touched: a transform that draws from numpy is not repeatable.

    Args:
        seed: the run's seed.
        epoch: from 0.
        index: the sample's index in its data set, whatever the worker or rank.
        restore: put both generators back afterwards; needed in the main process, whose model draws from the same generator,
            and to spare in a worker, where everything that draws is seeded so.
    """
    number = mix(seed, epoch, index)
    # The generator's own method: torch.manual_seed does the same and then goes over all accelerators, a hundred times slower.
    generator = torch.default_generator
    if not restore:
        generator.manual_seed(number)
        random.seed(number)
        yield
        return
    mine, pythons = generator.get_state(), random.getstate()
    generator.manual_seed(number)
    random.seed(number)
    try:
        yield
    finally:
        generator.set_state(mine)
        random.setstate(pythons)
