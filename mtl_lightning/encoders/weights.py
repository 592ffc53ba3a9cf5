"""Pretrained weights for torchvision's backbones: by their torchvision name, or from a file of one's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from mtl_lightning.errors import ConfigError

KEY = "model.encoder.init_args.weights"


def imagenet_normalisation(in_channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of ImageNet's RGB in 0..1; for grey images their averages over the channels."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return ([sum(mean) / 3], [sum(std) / 3]) if in_channels == 1 else (mean, std)


def load_weights(trunk: nn.Module, model: str, weights: str | None, first: str, classifier: Sequence[str]) -> None:
    """Fill a backbone without its classifier from a state_dict of torchvision's whole network.

    Weights of a first convolution over RGB are summed over RGB where the trunk takes grey images: what a grey picture in three
    equal channels would give.

    Args:
        trunk: its keys are torchvision's.
        model: torchvision's name of the network.
        weights: the name of one of torchvision's weights for it ("IMAGENET1K_V1", "DEFAULT"), downloaded on first use;
            otherwise the path of a state_dict file; None leaves the trunk as it is.
        first: key of the first convolution's weight.
        classifier: the modules of the whole network that the trunk does without.

    Raises:
        ConfigError: the weights cannot be found, downloaded or read, or are not those of this network.
    """
    if weights is None:
        return
    names = get_model_weights(model).__members__
    state = _downloaded(model, weights) if weights in names else _read(weights, model, list(names))
    if first in state and state[first].dim() == 4 and trunk.state_dict()[first].shape[1] == 1:
        state[first] = state[first].sum(dim=1, keepdim=True)
    _check_shapes(trunk, state, model, weights)
    missing, unexpected = trunk.load_state_dict(state, strict=False)
    unexpected = [key for key in unexpected if key.split(".")[0] not in classifier]
    if missing or unexpected:
        raise ConfigError(
            f"{KEY}: '{weights}' is not a state_dict of torchvision's {model}: {_some('missing', missing)}, "
            f"{_some('unexpected', unexpected)}; save it with torch.save(network.state_dict(), path)"
        )


def _downloaded(model: str, weights: str) -> dict[str, Tensor]:
    try:
        return dict(get_model_weights(model)[weights].get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"{KEY}: torchvision's weights '{weights}' of {model} could not be downloaded ({error}); "
            "check the network, or give the path of a state_dict file, or null to start from random weights"
        ) from error


def _read(weights: str, model: str, names: list[str]) -> dict[str, Tensor]:
    if not Path(weights).is_file():
        raise ConfigError(
            f"{KEY}: '{weights}' is no file and none of torchvision's weights of {model}, expected one of {names} or the "
            "path of a state_dict file"
        )
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        # A cut or foreign file fails anywhere inside the unpickler, with whatever that place raises (struct.error, KeyError…).
        raise ConfigError(
            f"{KEY}: '{weights}' cannot be read as a state_dict file; it is cut off or holds more than tensors, "
            "save it again with torch.save(network.state_dict(), path)"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(key, str) and isinstance(state[key], Tensor) for key in state):
        holds = f"the keys {list(state)[:5]}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ConfigError(
            f"{KEY}: '{weights}' holds {holds}, expected a state_dict of torchvision's {model} (names to tensors); "
            "save it with torch.save(network.state_dict(), path)"
        )
    return dict(state)


def _check_shapes(trunk: nn.Module, state: Mapping[str, Tensor], model: str, weights: str) -> None:
    wrong = [
        f"{key} {tuple(state[key].shape)} for {tuple(tensor.shape)}"
        for key, tensor in trunk.state_dict().items()
        if key in state and state[key].shape != tensor.shape
    ]
    if wrong:
        raise ConfigError(
            f"{KEY}: '{weights}' has other shapes than {model}: {_some('found for expected', wrong)}; "
            "set model.encoder.init_args.name to the network that the file belongs to"
        )


def _some(label: str, keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{label}: {', '.join(keys[:5]) or 'none'}{more}"
