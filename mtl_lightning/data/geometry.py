"""How dense labels move under ``torchvision.transforms.v2``; importing this module registers it with torchvision.

All three kinds take the nearest pixel whatever ``interpolation`` a transform was given, and 0 where something is filled in
whatever ``fill`` it was given. Flips, crops and centre crops only move pixels and are torchvision's own kernels for masks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mtl_lightning.data.tv import DenseLabel, Depth, Normals
from mtl_lightning.errors import DataError

Kernel = Callable[..., Tensor]


def _register(functional: Callable[..., Any], kind: type[DenseLabel]) -> Callable[[Kernel], Kernel]:
    """Like ``register_kernel`` for a kernel of plain tensors: unwraps what goes in, wraps what comes out."""

    def decorate(kernel: Kernel) -> Kernel:
        def wrapped(label: DenseLabel, *args: Any, **kwargs: Any) -> Tensor:
            moved: Tensor = tv_tensors.wrap(kernel(label.as_subclass(Tensor), *args, **kwargs), like=label)
            return moved

        F.register_kernel(functional, kind)(wrapped)
        return kernel

    return decorate


@_register(F.resize, DenseLabel)
def _resize(label: Tensor, size: list[int] | None, max_size: int | None = None, **_: Any) -> Tensor:
    # The exact mode takes the pixel under the new pixel's centre, as the image's bilinear does; the mode that torchvision
    # uses for masks takes its upper left neighbour and so shifts the label by up to half a pixel.
    flat = label[None] if label.ndim == 2 else label
    mode = InterpolationMode.NEAREST_EXACT
    resized: Tensor = F.resize_image(flat, size=size, interpolation=mode, max_size=max_size, antialias=False)
    return resized.reshape(label.shape[:-2] + resized.shape[-2:])


@_register(F.resized_crop, DenseLabel)
def _resized_crop(label: Tensor, top: int, left: int, height: int, width: int, size: list[int], **_: Any) -> Tensor:
    return _resize(F.crop_mask(label, top, left, height, width), size)


@_register(F.rotate, DenseLabel)
def _rotate(label: Tensor, angle: float, expand: bool = False, center: list[float] | None = None, **_: Any) -> Tensor:
    moved: Tensor = F.rotate_mask(label, angle=angle, expand=expand, center=center)
    return moved


@_register(F.affine, DenseLabel)
def _affine(
    label: Tensor,
    angle: float,
    translate: list[float],
    scale: float,
    shear: list[float],
    center: list[float] | None = None,
    **_: Any,
) -> Tensor:
    moved: Tensor = F.affine_mask(label, angle=angle, translate=translate, scale=scale, shear=shear, center=center)
    return moved


@_register(F.pad, DenseLabel)
def _pad(label: Tensor, padding: list[int], padding_mode: str = "constant", **_: Any) -> Tensor:
    moved: Tensor = F.pad_mask(label, padding=padding, fill=0, padding_mode=padding_mode)
    return moved


@_register(F.perspective, DenseLabel)
def _perspective(label: Tensor, startpoints: Any, endpoints: Any, coefficients: list[float] | None = None, **_: Any) -> Tensor:
    moved: Tensor = F.perspective_mask(label, startpoints=startpoints, endpoints=endpoints, coefficients=coefficients)
    return moved


@_register(F.elastic, DenseLabel)
def _elastic(label: Tensor, displacement: Tensor, **_: Any) -> Tensor:
    moved: Tensor = F.elastic_mask(label, displacement=displacement)
    return moved


@_register(F.resized_crop, Depth)
def _resized_crop_depth(depth: Tensor, top: int, left: int, height: int, width: int, size: list[int], **_: Any) -> Tensor:
    # A crop brought back to the full field of view looks like the whole scene from closer by (Eigen et al., NeurIPS 2014).
    zoom = math.sqrt(depth.shape[-2] * depth.shape[-1] / (height * width))
    return _resized_crop(depth, top, left, height, width, size) / zoom


@_register(F.affine, Depth)
def _affine_depth(depth: Tensor, angle: float, translate: list[float], scale: float, shear: list[float], **rest: Any) -> Tensor:
    return _affine(depth, angle, translate, scale, shear, **rest) / scale


@_register(F.horizontal_flip, Normals)
def _horizontal_flip_normals(normals: Tensor) -> Tensor:
    return _scaled(F.horizontal_flip_mask(normals), -1, 1)


@_register(F.vertical_flip, Normals)
def _vertical_flip_normals(normals: Tensor) -> Tensor:
    return _scaled(F.vertical_flip_mask(normals), 1, -1)


@_register(F.rotate, Normals)
def _rotate_normals(normals: Tensor, angle: float, **rest: Any) -> Tensor:
    return _turned(_rotate(normals, angle, **rest), angle)


@_register(F.affine, Normals)
def _affine_normals(
    normals: Tensor, angle: float, translate: list[float], scale: float, shear: Sequence[float], **rest: Any
) -> Tensor:
    if any(shear):
        _refuse("shear")
    # torchvision's affine turns clockwise, its rotate counter-clockwise.
    return _turned(_affine(normals, angle, translate, scale, list(shear), **rest), -angle)


@_register(F.pad, Normals)
def _pad_normals(normals: Tensor, padding: list[int], padding_mode: str = "constant", **_: Any) -> Tensor:
    # A mirrored margin would need mirrored vectors: those margins stay without a label.
    mode = "constant" if padding_mode in ("reflect", "symmetric") else padding_mode
    return _pad(normals, padding, padding_mode=mode)


@_register(F.perspective, Normals)
def _perspective_normals(normals: Tensor, *_: Any, **__: Any) -> Tensor:
    return _refuse("perspective")


@_register(F.elastic, Normals)
def _elastic_normals(normals: Tensor, *_: Any, **__: Any) -> Tensor:
    return _refuse("elastic")


def _scaled(normals: Tensor, x: float, y: float) -> Tensor:
    return normals * torch.tensor([x, y, 1.0], dtype=normals.dtype).view(3, 1, 1)


def _turned(normals: Tensor, degrees: float) -> Tensor:
    """The vectors turned counter-clockwise as seen in the picture."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y, z = normals.unbind(-3)
    return torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-3)


def _refuse(movement: str) -> Tensor:
    raise DataError(
        f"surface normals cannot be moved through {movement}: the new directions are not known; "
        "leave that transform out of the data module's transforms, or the normals task out of the run"
    )
