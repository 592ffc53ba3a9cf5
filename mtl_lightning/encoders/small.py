"""A small convolution network, for small images and quick experiments."""

from collections import OrderedDict

from torch import nn

from mtl_lightning.encoders.base import ImageEncoder, Stage
from mtl_lightning.encoders.weights import load_own
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import FeatureSpec


class SmallCNN(ImageEncoder):
    """One stage of convolution 3x3, batch norm, ReLU and max-pooling 2x2 per width.

    Images must be at least 2 ** len(widths) pixels high and wide; they are taken in 0..1 as they are.

    Args:
        widths: channels of the stages; the default is the 3-64-128 network of many tutorials.
        in_channels: channels of the images.
        norm: with batch norm; without, the convolutions have a bias instead.
        weights: the path of a checkpoint of ours or of a state_dict file of such an encoder; null starts from random weights.
        strict: whether missing and unexpected tensors in the weights are an error.

    Raises:
        ConfigError: widths or channels below 1, or weights that are missing, broken or another encoder's.
    """

    def __init__(
        self,
        widths: list[int] = [64, 128],  # noqa: B006
        in_channels: int = 3,
        norm: bool = True,
        weights: str | None = None,
        strict: bool = True,
    ) -> None:
        if not widths or min(widths) < 1 or in_channels < 1:
            raise ConfigError(
                f"model.encoder.init_args: widths is {widths} and in_channels {in_channels}, expected one number >= 1 per "
                "stage and at least one channel"
            )
        stages, previous = [], in_channels
        for depth, width in enumerate(widths, start=1):
            convolution = nn.Conv2d(previous, width, 3, padding=1, bias=not norm)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            body: OrderedDict[str, nn.Module] = OrderedDict(conv=convolution)
            if norm:
                body["norm"] = nn.BatchNorm2d(width)
            body["relu"] = nn.ReLU(inplace=True)
            body["pool"] = nn.MaxPool2d(2)
            stages.append(Stage(nn.Sequential(body), FeatureSpec(width, 2**depth)))
            previous = width
        super().__init__(stages, in_channels, mean=0.0, std=1.0, smallest=2 ** len(widths))
        load_own(self, weights, "stages.0.body.conv.weight", strict)
