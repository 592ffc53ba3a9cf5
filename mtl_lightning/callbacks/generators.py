"""The global random generators of every process: what dropout and stochastic depth draw from."""

import hashlib
import random
from typing import Any

import numpy as np
import torch

Generators = dict[str, Any]
"""The state of one process's generators, of plain types that safe loading takes."""


def generators() -> Generators:
    """This process's."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global stream is what is kept
    version, state, gauss = random.getstate()
    return {
        "python": [version, list(state), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],  # type: ignore[union-attr, attr-defined]
        "torch": torch.get_rng_state(),
        # To ask for the cards' would start CUDA, which takes memory of every card, in runs that use none.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
    }


def restore(state: Generators) -> None:
    """Go on from a state."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([card.cpu() for card in state["cuda"]])


def reseed(state: Generators, rank: int) -> None:
    """Start streams anew that no other process has, from a state and the process's rank.

    Args:
        state: of the first process, the same on all.
        rank: of this one.
    """
    digest = hashlib.blake2b(state["torch"].cpu().numpy().tobytes() + rank.to_bytes(8, "little"), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") % 2**63
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
