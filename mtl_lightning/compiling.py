"""torch.compile over the parts of a network. Pure torch."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch._dynamo.config as dynamo

from mtl_lightning.errors import ConfigError
from mtl_lightning.model import MultiTaskModel

VARIANTS = 16
"""Compiled forms of one part: training or not, with gradients or not, frozen or not, one size, any size, one row, autocast."""


@dataclass
class CompileOptions:
    """How training compiles the network.

    Each stage of the encoder and each head is compiled by itself, the first time that it runs, and again for what cannot run the
    same code: evaluation, another size of the batch or the picture (the second size gives code for all sizes), a stage that
    thaws. What an architecture adds between the stages (gates, stitches, attention) runs as it is. Checkpoints are the same with
    and without.

    Attributes:
        mode: ``max-autotune-no-cudagraphs`` tries several kernels for each operation, which takes long; CUDA graphs are not
            offered, for they overwrite what backward passes of several tasks still need.
        dynamic: whether sizes may vary from the start on; null finds it out.
        backend: one of ``torch.compiler.list_backends()``; ``inductor`` needs a C++ compiler.
    """

    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    dynamic: bool | None = None
    backend: str = "inductor"


def check_compiler(options: CompileOptions, device: torch.device) -> None:
    """Raise :class:`ConfigError` where torch.compile cannot work, in a trial that costs seconds; later it would end a run."""
    known = torch.compiler.list_backends(exclude_tags=())
    if options.backend not in known:
        raise ConfigError(f"model.compile.backend is '{options.backend}', expected one of {', '.join(known)}")
    try:
        torch.compile(lambda value: 2 * value, backend=options.backend)(torch.ones(8, device=device))
    # Backends, compilers and drivers fail in many ways; what was raised is in the message.
    except Exception as error:
        # The first line may only say that the backend raised.
        reason = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])[:200] or type(error).__name__
        raise ConfigError(
            f"model.compile: torch.compile cannot compile here ({reason}); backend inductor needs a C++ compiler (g++ or "
            "clang++; the environment variable CXX names another) and on a GPU Triton: install it, or set model.compile to null"
        ) from error


def compile_parts(model: MultiTaskModel, options: CompileOptions) -> None:
    """Compile the stages of the encoder, in all copies, and the heads, in place: parameters keep their names.

    Args:
        model: the network.
        options: how.
    """
    from torch._inductor import config as inductor  # takes a second to import

    # Dropout then takes the random numbers that it takes uncompiled, not inductor's own.
    inductor.fallback_random = True
    stages = [stage for copies in model.architecture.stages() for stage in copies]
    parts = list(dict.fromkeys([*stages, *model.heads.values()]))
    # torch counts what is compiled for all modules together, and beyond a limit it runs them uncompiled.
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS * len(parts))
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * dynamo.recompile_limit)
    for part in parts:
        part.compile(mode=options.mode, dynamic=options.dynamic, backend=options.backend)
