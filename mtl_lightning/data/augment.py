"""RandAugment and TrivialAugment that move the labels with the image; torchvision's own refuse samples with such labels."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from mtl_lightning.data.tv import Normals
from mtl_lightning.errors import ConfigError

Strength = Callable[[float, int, int], float]
"""From level (0..1), height and width of the picture to the strength."""


class Operation(NamedTuple):
    """One kind of change.

    Attributes:
        apply: from image (or label) and strength to the changed one.
        strength: how strong at which level.
        signed: whether the strength's sign is drawn.
        moves: whether it is geometric, and so moves labels, too.
        shears: whether it bends right angles, through which normals cannot be moved.
    """

    apply: Callable[[Any, float], Any]
    strength: Strength = lambda level, *_: level
    signed: bool = False
    moves: bool = False
    shears: bool = False


def _affine(part: Any, x: float = 0.0, y: float = 0.0, shear_x: float = 0.0, shear_y: float = 0.0) -> Any:
    shear = [math.degrees(math.atan(shear_x)), math.degrees(math.atan(shear_y))]
    # Sheared around the upper left corner, as in AutoAugment (E. D. Cubuk et al., CVPR 2019).
    center = [0.0, 0.0] if any(shear) else None
    translate = [int(x), int(y)]
    return F.affine(
        part, angle=0.0, translate=translate, scale=1.0, shear=shear, center=center, interpolation=InterpolationMode.BILINEAR
    )


def _operations(shear: float, shift: Callable[[int], float], turn: float, color: float, bits: int) -> dict[str, Operation]:
    """All operations with their strengths at level 1; a shift is in pixels of the side's length."""
    bilinear = InterpolationMode.BILINEAR

    def moving(apply: Callable[[Any, float], Any], strength: Strength, shears: bool = False) -> Operation:
        return Operation(apply, strength, signed=True, moves=True, shears=shears)

    def coloring(adjust: Callable[[Any, float], Any]) -> Operation:
        return Operation(lambda image, s: adjust(image, 1 + s), lambda level, *_: level * color, signed=True)

    return {
        "Identity": Operation(lambda part, _: part),
        "ShearX": moving(lambda part, s: _affine(part, shear_x=s), lambda level, *_: level * shear, shears=True),
        "ShearY": moving(lambda part, s: _affine(part, shear_y=s), lambda level, *_: level * shear, shears=True),
        "TranslateX": moving(lambda part, s: _affine(part, x=s), lambda level, height, width: level * shift(width)),
        "TranslateY": moving(lambda part, s: _affine(part, y=s), lambda level, height, width: level * shift(height)),
        "Rotate": moving(lambda part, s: F.rotate(part, s, interpolation=bilinear), lambda level, *_: level * turn),
        "Brightness": coloring(F.adjust_brightness),
        "Color": coloring(F.adjust_saturation),
        "Contrast": coloring(F.adjust_contrast),
        "Sharpness": coloring(F.adjust_sharpness),
        "Posterize": Operation(lambda image, s: F.posterize(image, round(8 - s)), lambda level, *_: level * bits),
        "Solarize": Operation(lambda image, s: F.solarize(image, (1 - s) * (1.0 if image.is_floating_point() else 255.0))),
        "AutoContrast": Operation(lambda image, _: F.autocontrast(image)),
        "Equalize": Operation(lambda image, _: F.equalize(image)),
    }


class _WithLabels(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Draws operations once a sample and applies each to the image and, where it moves pixels, to every label."""

    def __init__(self, operations: dict[str, Operation], count: int) -> None:
        super().__init__()
        self.names, self.count = list(operations), count

    def operations(self) -> dict[str, Operation]:
        """What to draw from. Made anew, because functions cannot be pickled for workers."""
        raise NotImplementedError

    def level(self) -> float:
        """How strong the next operation is, 0..1."""
        raise NotImplementedError

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the operations; called once a sample."""
        height, width = v2.query_size(flat_inputs)
        known = self.operations()
        bends = any(isinstance(part, Normals) for part in flat_inputs)
        names = [name for name in self.names if not (bends and known[name].shears)]
        chosen = []
        for _ in range(self.count):
            name = names[int(torch.randint(len(names), ()))]
            strength = known[name].strength(self.level(), height, width)
            chosen.append((name, -strength if known[name].signed and float(torch.rand(())) < 0.5 else strength))
        return {"chosen": chosen}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the drawn operations to one part of the sample."""
        known = self.operations()
        for name, strength in params["chosen"]:
            if known[name].moves or isinstance(inpt, tv_tensors.Image):
                inpt = known[name].apply(inpt, strength)
        return inpt


class RandAugmentWithLabels(_WithLabels):
    """RandAugment (E. D. Cubuk, B. Zoph, J. Shlens, Q. V. Le, NeurIPS 2020) that moves masks, depth, normals and boxes along.

    The operations and strengths are those of ``torchvision.transforms.v2.RandAugment``, images being interpolated linearly.
    Labels move by shears, shifts and rotations, and what comes in from outside is unlabelled. A sample with surface normals is
    not sheared, since their new directions would not be known.

    Args:
        num_ops: operations per sample, one after the other.
        magnitude: their strength, 0 (none) to 30.

    Raises:
        ConfigError: a number out of its range.
    """

    def __init__(self, num_ops: int = 2, magnitude: int = 9) -> None:
        if num_ops < 0 or not 0 <= magnitude <= 30:
            raise ConfigError(
                f"RandAugmentWithLabels: num_ops is {num_ops} and magnitude {magnitude}, expected 0 or more, and 0 to 30"
            )
        self.magnitude = magnitude
        super().__init__(self.operations(), num_ops)

    def operations(self) -> dict[str, Operation]:
        """RandAugment's."""
        return _operations(0.3, lambda side: 150 / 331 * side, 30, 0.9, 4)

    def level(self) -> float:
        """The magnitude."""
        return self.magnitude / 30


class TrivialAugmentWithLabels(_WithLabels):
    """TrivialAugment, wide (S. G. Müller, F. Hutter, ICCV 2021) that moves masks, depth, normals and boxes along.

    One operation of a random strength per sample, as in ``torchvision.transforms.v2.TrivialAugmentWide``; labels as in
    :class:`RandAugmentWithLabels`.
    """

    def __init__(self) -> None:
        super().__init__(self.operations(), 1)

    def operations(self) -> dict[str, Operation]:
        """TrivialAugment's, wide."""
        return _operations(0.99, lambda side: 32, 135, 0.99, 6)

    def level(self) -> float:
        """Drawn."""
        return float(torch.randint(31, ())) / 30
