"""Methods of the library TorchJD on our Gramian."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from mtl_lightning.errors import ConfigError, TrainingError
from mtl_lightning.weighting.base import GradientWeighting

INSTALL = "pip install 'mtl-lightning[torchjd]'"
KEY = "model.weighting.init_args.weighting"


class TorchJD(GradientWeighting):
    """Any method of TorchJD (Quinton, Rey, 2024) that weighs by the Gramian; needs ``pip install 'mtl-lightning[torchjd]'``.

    On the command line ``--model.weighting TorchJD --model.weighting.weighting torchjd.aggregation.AlignedMTLWeighting``. Some
    of its methods need further libraries, which its errors name. The scale of the weights is the method's own. It sees the
    present tasks only: one whose state or options have the number of tasks needs all tasks in every batch. Its draws are
    from PyTorch's random numbers, set from (seed, step) while it runs, so that they are the same on all ranks and after a
    resume. State that it does not keep in buffers starts anew in a resumed run.

    Args:
        weighting: the method, from the Gramian [P, P] to weights [P]: an instance of ``torchjd.aggregation.Weighting``, or the
            class path of one without options.
        seed: of the draws.
    """

    step: Tensor

    # Not Callable: the parser takes a class path for that as a function that returns tensors. A string comes in where the class
    # path cannot be imported.
    def __init__(self, weighting: nn.Module | str, seed: int = 0) -> None:
        super().__init__()
        library = _library()
        if isinstance(weighting, str):
            weighting = _made(weighting)
        if isinstance(weighting, library.Aggregator):
            raise ConfigError(
                f"{KEY} is {type(weighting).__name__}, which does not weigh by the Gramian; expected a class that "
                "torchjd.aggregation names with Weighting at the end, such as torchjd.aggregation.UPGradWeighting"
            )
        self.weighting = weighting
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_pre_hook(_make_room)  # type: ignore[no-untyped-call]

    def forward(self, gramian: Tensor, losses: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """What the method says."""
        numbers = torch.get_rng_state()
        torch.default_generator.manual_seed((self.seed * 1_000_003 + int(self.step)) % 2**63)
        try:
            weights: Tensor = self.weighting(gramian)
        finally:
            torch.set_rng_state(numbers)
        if self.training:
            self.step += 1
        if weights.shape != gramian.shape[:1]:
            raise TrainingError(
                f"model.weighting TorchJD: {type(self.weighting).__name__} gave {tuple(weights.shape)} for {len(gramian)} tasks"
            )
        return weights.detach().to(gramian)


def _library() -> Any:
    try:
        return import_module("torchjd.aggregation")
    except ImportError as error:
        raise ConfigError(f"the weighting TorchJD needs the library torchjd ({error}): {INSTALL}") from error


def _made(path: str) -> nn.Module:
    module, _, name = path.rpartition(".")
    try:
        made: nn.Module = getattr(import_module(module), name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{KEY} is '{path}', which cannot be made ({error}); expected the class path of a method of TorchJD, such as "
            "torchjd.aggregation.UPGradWeighting"
        ) from error
    return made


def _make_room(method: nn.Module, state: dict[str, Tensor], prefix: str, *more: object) -> None:
    """Buffers that are None until the first step: the method of the checkpoint had one."""
    modules = dict(method.named_modules(prefix=prefix.rstrip(".")))
    for key, value in state.items():
        path, _, name = key.rpartition(".")
        if path in modules and getattr(modules[path], name, value) is None:
            setattr(modules[path], name, torch.empty_like(value))
