"""Pretrained weights: torchvision's by name, a state_dict file, or the encoder of a checkpoint of ours."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError

KEY = "model.encoder.init_args.weights"
STAGE = re.compile(r"(?:^|\.)stages\.(\d+)\.")
OURS = "model.architecture."
"""Where checkpoints of runs keep the encoder."""
SKIPPED: ContextVar[bool] = ContextVar("SKIPPED", default=False)
LOGGER = logging.getLogger("mtl_lightning")

State = dict[str, Tensor]


@contextmanager
def without_pretrained() -> Iterator[None]:
    """Encoders that are built herein read no weights: a checkpoint with all of them follows."""
    token = SKIPPED.set(True)
    try:
        yield
    finally:
        SKIPPED.reset(token)


def imagenet_normalisation(in_channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of ImageNet's RGB in 0..1; for grey images their averages over the channels."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return ([sum(mean) / 3], [sum(std) / 3]) if in_channels == 1 else (mean, std)


def load_weights(
    trunk: nn.Module,
    model: str,
    weights: str | None,
    first: str,
    classifier: Sequence[str],
    *,
    strict: bool = True,
    encoder: nn.Module | None = None,
    rename: Callable[[str], str] | None = None,
) -> None:
    """Fill a backbone without its classifier from a state_dict of torchvision's whole network, or from our own.

    Weights of a first convolution over RGB are summed over RGB where the trunk takes grey images: what a grey picture in three
    equal channels would give. What was found is logged in one line.

    Args:
        trunk: its keys are torchvision's.
        model: torchvision's name of the network.
        weights: the name of one of torchvision's weights for it ("IMAGENET1K_V1", "DEFAULT"), downloaded on first use;
            otherwise the path of a state_dict file or of a checkpoint of ours; None leaves the trunk as it is.
        first: key of the first convolution's weight.
        classifier: the modules of the whole network that the trunk does without.
        strict: whether a missing or an unexpected tensor is an error; another shape always is one.
        encoder: made of the trunk's modules; gets what a checkpoint of ours holds.
        rename: from a key in the file to the trunk's.

    Raises:
        ConfigError: the weights cannot be found, downloaded or read, or are not those of this network.
    """
    if isinstance(encoder, Encoder):
        encoder.fresh = weights is None
    if weights is None or SKIPPED.get():
        return
    names = get_model_weights(model).__members__
    named = weights in names
    state = _downloaded(model, weights) if named else read_weights(weights, model, list(names))
    if encoder is not None and any(STAGE.match(key) for key in state):
        _fill_own(encoder, state, model, weights, _ours(encoder, trunk, first), strict)
        return
    if rename is not None:
        state = {rename(key): tensor for key, tensor in state.items()}
    whole = f"a state_dict of torchvision's {model}"
    fill(trunk, state, f"{model} {weights}" if named else weights, (model, whole), first, classifier, strict)


def load_own(encoder: nn.Module, weights: str | None, first: str, strict: bool) -> None:
    """As :func:`load_weights` for an encoder of our own making: from its state_dict file or a checkpoint of ours."""
    if isinstance(encoder, Encoder):
        encoder.fresh = weights is None
    if weights is not None and not SKIPPED.get():
        _fill_own(encoder, read_weights(weights, type(encoder).__name__, []), type(encoder).__name__, weights, first, strict)


def _ours(encoder: nn.Module, trunk: nn.Module, first: str) -> str:
    weight = trunk.get_parameter(first)
    return next((name for name, parameter in encoder.named_parameters() if parameter is weight), "")


def _fill_own(encoder: nn.Module, state: State, model: str, weights: str, first: str, strict: bool) -> None:
    depth = len(encoder.stages)  # type: ignore[arg-type]
    beyond = {f"stages.{m.group(1)}" for key in state if (m := STAGE.match(key)) and int(m.group(1)) >= depth}
    kept = {key: tensor for key, tensor in state.items() if ".".join(key.split(".")[:2]) not in beyond}
    fill(encoder, kept, weights, (model, f"a state_dict of the encoder {model}"), first, [], strict)


def fill(
    trunk: nn.Module,
    state: State,
    source: str,
    expected: tuple[str, str],
    first: str,
    classifier: Sequence[str],
    strict: bool,
) -> None:
    """Load what fits, and log or refuse what does not.

    Args:
        trunk: what is filled.
        state: the tensors found.
        source: where, for messages.
        expected: the network's name, and what was expected to be found, for messages.
        first: key of the first convolution's weight, the one that may be of RGB for grey images.
        classifier: first parts of keys that may be left over.
        strict: whether a missing or an unexpected tensor is an error.

    Raises:
        ConfigError: another shape, nothing that fits, or, if strict, something missing or unexpected.
    """
    model, wanted = expected
    mine = trunk.state_dict()
    if first in state and first in mine and state[first].dim() == 4 and (mine[first].shape[1], state[first].shape[1]) == (1, 3):
        state = state | {first: state[first].sum(dim=1, keepdim=True)}
    _check_shapes(mine, state, model, source)
    missing, unexpected = trunk.load_state_dict(state, strict=False)
    left = [key for key in unexpected if key.split(".")[0] in classifier]
    unexpected = [key for key in unexpected if key not in left]
    parts = f"{_some('missing', missing)}, {_some('unexpected', unexpected)}"
    # Files older than batch norm's counters are complete without them.
    counted = [key for key in mine if not key.endswith("num_batches_tracked")]
    matched = sum(key in state for key in counted)
    if not matched or (strict and (missing or unexpected)):
        hint = "" if not matched else "; or take what fits with model.encoder.init_args.strict: false"
        raise ConfigError(
            f"{KEY}: '{source}' is not {wanted}: {parts}; save it with torch.save(network.state_dict(), path){hint}"
        )
    more = f", {len(left)} of the classifier left out" if left else ""
    counts = f"{matched} of {len(counted)} tensors loaded, {len(missing)} missing, {len(unexpected)} unexpected{more}"
    LOGGER.info("Weights %s: %s%s", source, counts, f" ({parts})" if missing or unexpected else "")


def _downloaded(model: str, weights: str) -> State:
    try:
        return dict(get_model_weights(model)[weights].get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"{KEY}: torchvision's weights '{weights}' of {model} could not be downloaded ({error}); "
            "check the network, or give the path of a state_dict file, or null to start from random weights"
        ) from error


def read_weights(weights: str, model: str, names: list[str]) -> State:
    """The tensors of a state_dict file; of a checkpoint of ours its encoder's, as the encoder names them.

    Args:
        weights: the path.
        model: the network's name, for messages.
        names: of the weights that can be downloaded, for messages.

    Raises:
        ConfigError: no such file, broken, holds more than tensors, or several encoders.
    """
    if not Path(weights).is_file():
        known = f" and none of the known weights of {model}, expected one of {names} or" if names else ", expected"
        raise ConfigError(f"{KEY}: '{weights}' is no file{known} the path of a state_dict file or of a checkpoint of a run")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        # A cut or foreign file fails anywhere inside the unpickler, with whatever that place raises (struct.error, KeyError…).
        raise ConfigError(
            f"{KEY}: '{weights}' cannot be read as a state_dict file; it is cut off or holds more than tensors, "
            "save it again with torch.save(network.state_dict(), path)"
        ) from error
    whole = state.get("state_dict") if isinstance(state, Mapping) else None
    if isinstance(whole, Mapping) and any(str(key).startswith(OURS) for key in whole):
        return _encoder_part(whole, weights)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) and isinstance(state[key], Tensor) for key in state):
        holds = f"the keys {list(state)[:5]}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ConfigError(
            f"{KEY}: '{weights}' holds {holds}, expected a state_dict of {model} (names to tensors); "
            "save it with torch.save(network.state_dict(), path)"
        )
    return dict(state)


def _encoder_part(state: Mapping[str, Any], weights: str) -> State:
    architecture = {key: value for key, value in state.items() if key.startswith(OURS)}
    prefixes = sorted({key[: match.start()] for key in architecture if (match := STAGE.search(key))})
    if len(prefixes) != 1:
        found = f"several encoders ({', '.join(prefixes)})" if prefixes else "no encoder"
        raise ConfigError(
            f"{KEY}: the checkpoint '{weights}' holds {found}, expected one; "
            "save the one to take with torch.save(encoder.state_dict(), path) and give that file"
        )
    prefix = prefixes[0] + "."
    return {key.removeprefix(prefix): value for key, value in architecture.items() if key.startswith(prefix)}


def _check_shapes(mine: Mapping[str, Tensor], state: State, model: str, source: str) -> None:
    wrong = [
        f"{key} {tuple(state[key].shape)} for {tuple(tensor.shape)}"
        for key, tensor in mine.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if wrong:
        raise ConfigError(
            f"{KEY}: '{source}' has other shapes than {model}: {_some('found for expected', wrong)}; "
            "set model.encoder.init_args to the network that the file belongs to (name, widths, image_size, in_channels…)"
        )


def _some(label: str, keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{label}: {', '.join(keys[:5]) or 'none'}{more}"
