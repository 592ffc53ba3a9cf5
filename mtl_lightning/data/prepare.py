"""From any picture to what the network sees of it, as in evaluation, and where that is in the stored picture."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from mtl_lightning.data.files import as_pixels, read_image
from mtl_lightning.data.opening import MAX_PIXELS, naming
from mtl_lightning.data.transforms import Transform, compose
from mtl_lightning.errors import DataError
from mtl_lightning.forms import PictureForm
from mtl_lightning.forms import Size as ExportSize
from mtl_lightning.frame import Frame
from mtl_lightning.inputs import IMAGE

FRAME = "_frame"
GRID = 33
"""Points along each side that are followed through the transforms: enough that some stay inside of any sensible crop."""


Size = tuple[int, int]


class Prepared(NamedTuple):
    """One picture for the network.

    Attributes:
        id: its name.
        image: float32 [C, H, W] in 0..1.
        frame: where that is in the stored picture.
        inputs: several pictures of one row by input, of which this is the first; None where there is one.
    """

    id: str
    image: Tensor
    frame: Frame
    inputs: Mapping[str, "Prepared"] | None = None

    @property
    def input(self) -> str:
        """Where the network reads it, if there is one input."""
        return IMAGE

    @property
    def tensor(self) -> Tensor:
        """What the network reads."""
        return self.image

    @property
    def text(self) -> None:
        """It is none."""
        return None

    def seen_by(self, task: str, reads: Mapping[str, str]) -> "Prepared | None":
        """What a task reads of it; None where the row lacks that."""
        return self.inputs.get(reads[task]) if self.inputs else self


def together(name: str, inputs: Mapping[str, Prepared]) -> Prepared:
    """One row of several pictures."""
    first = next(iter(inputs.values()))
    return Prepared(name, first.image, first.frame, dict(inputs))


class Preparation:
    """The run's evaluation transforms, size and channels; :class:`~mtl_lightning.data.text.prepare.TextPreparation` is its twin.

    Args:
        transforms: of ``torchvision.transforms.v2``.
        image_size: as in :func:`~mtl_lightning.data.transforms.compose`.
        channels: 1 or 3.
        max_pixels: what a picture may have; those that are decoded already may have any number.
    """

    def __init__(
        self,
        transforms: Sequence[Transform] = (),
        image_size: int | Sequence[int] | None = None,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.transforms = list(transforms)
        self.image_size = image_size
        self.channels = channels
        self.max_pixels = max_pixels
        self._transform = compose(self.transforms, image_size)

    def take(self, item: Any, number: int, known: Sequence[str] = (IMAGE,)) -> Prepared:
        """Prepare what is given to predict.

        Args:
            item: a path or a picture in memory; of a model of several inputs a dict of these, which may lack some.
            number: of the item, for its name.
            known: the inputs of the model.

        Raises:
            DataError: it is neither, or cannot be read.
        """
        name = f"picture {number}"
        if list(known) == [IMAGE]:
            return self._take(item, name)
        if not isinstance(item, Mapping) or not item or not set(item) <= set(known):
            given = f"a dict of {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
            raise DataError(f"{name} is {given}; give a dict of one or several of its inputs: {', '.join(known)}")
        return together(name, {read: self._take(picture, name) for read, picture in item.items()})

    def _take(self, item: Any, name: str) -> Prepared:
        if isinstance(item, str | os.PathLike):
            return self.read(item)
        return self.prepare(as_image(item, self.channels, name, self.max_pixels), name)

    def form(self, size: ExportSize | None) -> PictureForm:
        """What an exported model reads; None takes the size of the run."""
        mine = self.image_size if self.image_size is None or isinstance(self.image_size, int) else tuple(self.image_size)
        return PictureForm(self.channels, size or mine or "any", [str(transform) for transform in self.transforms])  # type: ignore[arg-type]

    def read(self, path: str | os.PathLike[str], name: str | None = None) -> Prepared:
        """Prepare the picture in a file.

        Args:
            path: of the file.
            name: what results and messages call it; None takes the path.

        Raises:
            DataError: it is missing or broken.
        """
        path, name = Path(path), str(path) if name is None else name
        try:
            image = read_image(str(path.parent), path.name, self.channels, self.max_pixels)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        return self.prepare(image, name)

    def prepare(self, image: tv_tensors.Image, name: str) -> Prepared:
        """Prepare a picture [channels, H, W] of uint8 or floating-point numbers in 0..1.

        Raises:
            DataError: a transform fails, or moves the picture in a way that cannot be undone.
        """
        height, width = F.get_size(image)
        if not self.transforms:
            sample = self._transform({"id": name, "image": image})
            seen = (sample["image"].shape[-2], sample["image"].shape[-1])
            return Prepared(name, sample["image"], Frame.whole((height, width), seen))
        steps = (torch.arange(GRID) + 0.5) / GRID
        points = torch.cartesian_prod(steps * height, steps * width).flip(1)
        sample = self._transform({"id": name, "image": image, FRAME: tv_tensors.KeyPoints(points, canvas_size=(height, width))})
        return Prepared(name, sample["image"], self._frame(name, (height, width), sample["image"], points, sample[FRAME]))

    def _frame(self, name: str, size: Size, image: Tensor, before: Tensor, after: tv_tensors.KeyPoints) -> Frame:
        seen = (image.shape[-2], image.shape[-1])
        moved = after.as_subclass(Tensor).double()
        # Some versions of torchvision bring points outside of a crop to its border: these tell nothing.
        inside = ((moved > 1) & (moved < moved.new_tensor([seen[1] - 1, seen[0] - 1]))).all(1)
        given, moved = before.double()[inside], moved[inside]
        lines = [_line(given[:, axis], moved[:, axis]) for axis in (1, 0)]
        if tuple(after.canvas_size) != seen or any(line is None for line in lines):
            raise DataError(
                f"{name}: data.init_args.eval_transforms turn, flip or bend the picture, or move it without its labels; "
                "predictions cannot be brought back to the stored picture: leave such transforms out of eval_transforms"
            )
        scale, shift = ((lines[0][part], lines[1][part]) for part in (0, 1))  # type: ignore[index]
        return Frame(size, seen, scale, shift)


def _line(given: Tensor, moved: Tensor) -> tuple[float, float] | None:
    """Scale > 0 and shift with moved = given * scale + shift; None if there are none."""
    if len(given) < 2 or given.amax() == given.amin():
        return None
    first, last = int(given.argmin()), int(given.argmax())
    scale = (moved[last] - moved[first]) / (given[last] - given[first])
    shift = moved[first] - given[first] * scale
    if scale <= 0 or (given * scale + shift - moved).abs().max() > 0.01:
        return None
    return float(scale), float(shift)


def as_image(picture: Any, channels: int, name: str, max_pixels: int = MAX_PIXELS) -> tv_tensors.Image:
    """A picture in memory as the network's number of channels.

    Args:
        picture: a PIL image; an array [H, W] or [H, W, C] or a tensor [H, W] or [C, H, W] with C of 1, 3 or 4 (transparency on
            white), of integers of 8 bits, or floating-point numbers in 0..1.
        channels: 1 or 3.
        name: for messages.
        max_pixels: what a PIL image may have.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(picture, Image.Image):
        with naming(name):  # it may be opened and not decoded yet
            return as_pixels(picture, name, channels, max_pixels)
    if isinstance(picture, np.ndarray):
        tensor = torch.from_numpy(np.ascontiguousarray(picture))
        tensor = tensor.movedim(-1, 0) if tensor.ndim == 3 else tensor
    elif isinstance(picture, Tensor):
        tensor = picture.detach().cpu()
    else:
        raise DataError(f"{name} is a {type(picture).__name__}, expected a path, a PIL image, a numpy array or a tensor")
    tensor = tensor[None] if tensor.ndim == 2 else tensor
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or not tensor.numel():
        order = "[height, width, channels]" if isinstance(picture, np.ndarray) else "[channels, height, width]"
        raise DataError(f"{name} has shape {tuple(picture.shape)}, expected {order} with 1, 3 or 4 channels, or [height, width]")
    if tensor.is_floating_point():
        tensor = tensor.float()
        if not (tensor.amin() >= 0 and tensor.amax() <= 1):
            raise DataError(
                f"{name} has values from {float(tensor.amin()):.4g} to {float(tensor.amax()):.4g}, expected floating-point "
                "numbers in 0..1, not normalised: the model does that; divide by 255, or give uint8"
            )
    elif tensor.dtype != torch.uint8:
        raise DataError(f"{name} is of type {tensor.dtype}, expected uint8, or floating-point numbers in 0..1")
    return _with_channels(tensor, channels)


def _with_channels(tensor: Tensor, channels: int) -> tv_tensors.Image:
    if tensor.shape[0] == 4:
        white = 1.0 if tensor.is_floating_point() else 255.0
        alpha = tensor[3:].float() / white
        mixed = tensor[:3].float() * alpha + white * (1 - alpha)
        tensor = mixed if tensor.is_floating_point() else mixed.round().to(torch.uint8)
    if tensor.shape[0] != channels:
        tensor = tensor.expand(3, -1, -1) if channels == 3 else F.rgb_to_grayscale(tensor)
    return tv_tensors.Image(tensor.contiguous())
