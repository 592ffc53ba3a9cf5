"""The networks of the library timm, where they can be stepped through."""

import difflib
import importlib
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl_lightning.encoders.base import ImageEncoder, Stage
from mtl_lightning.encoders.weights import SKIPPED, fill, load_own, read_weights
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec

INSTALL = "pip install 'mtl-lightning[timm]'"
NAME = "model.encoder.init_args.name"


class TimmStage(Stage):
    """Some of a timm network's modules in turn, with channels first between stages.

    Args:
        body: the modules.
        spec: what comes out.
        enters: whether a map with channels last goes in.
        leaves: whether one comes out.
    """

    def __init__(self, body: nn.Sequential, spec: FeatureSpec, enters: bool, leaves: bool) -> None:
        super().__init__(body, spec)
        self.enters = enters
        self.leaves = leaves

    def step(self, features: Features) -> Features:
        """One step; a size that the network was not built for is an error."""
        tensor = features.tensor.permute(0, 2, 3, 1) if self.enters else features.tensor
        try:
            tensor = self.body(tensor)
        except AssertionError as error:
            raise ConfigError(
                f"timm's network refuses the size of the images: {error}; set data.init_args.image_size, or the size that it is "
                "built for with model.encoder.init_args.arguments (img_size: [height, width])"
            ) from error
        return features.like(tensor.permute(0, 3, 1, 2) if self.leaves else tensor)


class Timm(ImageEncoder):
    """Any network of timm (Wightman, PyTorch Image Models, 2019) whose features come one after the other.

    The stages are timm's feature levels: stage i maps what stage i - 1 gave. That this is what the network itself computes is
    checked on a picture when the encoder is built; networks that work otherwise (branches between the levels, plain
    vision transformers) are refused. Needs ``pip install 'mtl-lightning[timm]'``.

    Args:
        name: timm's name of the network, e.g. "resnet18d" or "convnext_atto".
        in_channels: 3 for RGB, 1 for grey images (RGB weights of the first convolution are summed).
        weights: "DEFAULT" for timm's pretrained weights, downloaded on first use, or the path of a state_dict file of timm's
            network or of a checkpoint of ours; null starts from random weights.
        normalize: take the mean that the network's weights were trained with out of the image in 0..1 and divide by the
            standard deviation.
        stages: how many of the stages, from the first on; null takes all.
        strict: whether missing and unexpected tensors in the weights are an error.
        arguments: more arguments of timm's network, e.g. {drop_path_rate: 0.1} or {img_size: [128, 128]}.

    Raises:
        ConfigError: timm is not installed, the name is unknown, the network cannot be stepped through, more stages than there
            are, or weights that are missing, broken or another network's.
    """

    def __init__(
        self,
        name: str,
        in_channels: Literal[1, 3] = 3,
        weights: str | None = None,
        normalize: bool = True,
        stages: int | None = None,
        strict: bool = True,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        library = _timm()
        pretrained = weights == "DEFAULT" and not SKIPPED.get()
        network = _network(library, name, pretrained, in_channels, arguments or {})
        config = network.pretrained_cfg
        made = _stages(library, name, network, _example(network, in_channels, arguments or {}))
        mean, std = (list(config["mean"]), list(config["std"])) if normalize else ([0.0], [1.0])  # type: ignore[index]
        if in_channels != len(mean):
            mean, std = [sum(mean) / len(mean)] * in_channels, [sum(std) / len(std)] * in_channels
        super().__init__(made, in_channels, mean, std, take=stages)
        self.fresh = weights is None
        if weights is None or weights == "DEFAULT" or SKIPPED.get():
            return
        first = f"{config['first_conv']}.weight" if isinstance(config.get("first_conv"), str) else ""  # type: ignore[index, union-attr, operator]
        state = read_weights(weights, f"timm's {name}", ["DEFAULT"])
        if any(key.startswith("stages.0.body.") for key in state):
            load_own(self, weights, first, strict)
            return
        heads = config["classifier"]  # type: ignore[index]
        classifier = [heads] if isinstance(heads, str) else list(heads or ())  # type: ignore[arg-type]
        whole = f"a state_dict of timm's {name}"
        fill(network, state, weights, (name, whole), first, [key.split(".")[0] for key in classifier], strict)


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(f"the encoder Timm needs the library timm ({error}): {INSTALL}") from error


def _network(library: Any, name: str, pretrained: bool, in_channels: int, arguments: dict[str, Any]) -> nn.Module:
    if not library.is_model(name):
        near = difflib.get_close_matches(name, library.list_models(), 6)
        raise ConfigError(f"{NAME} is '{name}', which timm {library.__version__} does not have; near it are {near}")
    try:
        network: nn.Module = library.create_model(name, pretrained=pretrained, in_chans=in_channels, num_classes=0, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"model.encoder.init_args: timm's {name} with arguments {arguments}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"model.encoder.init_args.weights: timm's weights of {name} could not be had ({error}); check the network, or give "
            "the path of a state_dict file, or null to start from random weights"
        ) from error
    return network


def _stages(library: Any, name: str, network: nn.Module, image: Tensor) -> list[Stage]:
    """The network's modules, grouped by timm's feature levels, once they are known to be the network."""
    info = [dict(level) for level in getattr(network, "feature_info", ())]
    truth = _truth(network, [str(level["module"]) for level in info], image)
    channels_last = getattr(network, "output_fmt", None) == "NHWC"
    for flat in (False, True) if truth else ():
        try:
            listed = library.models.FeatureListNet(network, tuple(range(len(info))), flatten_sequential=flat)
        except AssertionError:
            continue  # this way timm does not find all levels
        groups: list[list[nn.Module]] = [[]]
        for key, module in listed.items():
            groups[-1].append(module)
            if key in listed.return_layers:
                groups.append([])
        made: list[Stage] = []
        for group, level in zip(groups, info, strict=False):
            spec = FeatureSpec(int(level["num_chs"]), int(level["reduction"]))
            made.append(TimmStage(nn.Sequential(*group), spec, channels_last and bool(made), channels_last))
        if _equal(made, image, truth, channels_last):
            return made
    raise ConfigError(
        f"{NAME}: timm's {name} cannot be stepped through stage by stage, its features are no chain; take one whose levels "
        "follow one another, such as resnet50d, convnext_atto, efficientnet_b0, swin_tiny_patch4_window7_224, or the encoder ViT"
    )


def _example(network: nn.Module, in_channels: int, arguments: dict[str, Any]) -> Tensor:
    size = arguments.get("img_size") or network.pretrained_cfg["input_size"][1:]  # type: ignore[index]
    height, width = (size, size) if isinstance(size, int) else size
    return torch.rand(1, in_channels, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _truth(network: nn.Module, levels: list[str], image: Tensor) -> list[Tensor]:
    """What the levels give in the network's own forward pass; nothing where that cannot be had."""
    modules = dict(network.named_modules())
    if not levels or any(level not in modules for level in levels):
        return []
    found: dict[str, Any] = {}

    def keep(level: str) -> Any:
        # A copy: the next module may work in place.
        return lambda module, args, output: found.update({level: output.clone() if isinstance(output, Tensor) else None})

    handles = [modules[level].register_forward_hook(keep(level)) for level in levels]
    network.eval()(image)
    network.train()
    for handle in handles:
        handle.remove()
    outputs = [found.get(level) for level in levels]
    return [output for output in outputs if output is not None and output.dim() == 4] if None not in outputs else []


@torch.no_grad()
def _equal(stages: list[Stage], image: Tensor, truth: list[Tensor], channels_last: bool) -> bool:
    features = Features(image)
    if len(stages) != len(truth):
        return False
    for stage, expected in zip(stages, truth, strict=True):
        features = stage.eval()(features)
        stage.train()
        expected = expected.permute(0, 3, 1, 2) if channels_last else expected
        if features.tensor.shape != expected.shape or features.tensor.shape[1] != stage.spec.channels:
            return False
        if not torch.allclose(features.tensor, expected, rtol=1e-4, atol=1e-5):
            return False
    return True
