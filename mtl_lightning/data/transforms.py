"""From a stored sample to what the collate takes: the user's ``torchvision.transforms.v2``, the size, the plain tensors.

Labels that are pictures are :mod:`mtl_lightning.data.tv` tensors and move with the image; plain tensors, numbers and names
pass untouched.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mtl_lightning.data.tv import ClassMap, Depth, Normals
from mtl_lightning.errors import ConfigError, DataError

Transform = Callable[[dict[str, Any]], dict[str, Any]]
"""From sample to sample."""
AUTO = (v2.AutoAugment, v2.RandAugment, v2.TrivialAugmentWide, v2.AugMix)
"""They change images alone, and refuse a sample with a label that would have to move."""
TOLD = 200
"""Characters of a transform's arguments that fit into a message."""
CORNERS = {
    tv_tensors.BoundingBoxFormat.XYWHR: tv_tensors.BoundingBoxFormat.XYXYXYXY,
    tv_tensors.BoundingBoxFormat.CXCYWHR: tv_tensors.BoundingBoxFormat.XYXYXYXY,
    tv_tensors.BoundingBoxFormat.XYXYXYXY: tv_tensors.BoundingBoxFormat.XYXYXYXY,
}


class TransformError(DataError):
    """A transform cannot take a sample."""


class RandomScaleCrop(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Zoom into a random part of the picture, the NYUv2 recipe of MTAN (Liu, Johns, Davison, CVPR 2019).

    A scale s is drawn, a window of 1/s of the height and of the width is cut out at random and brought back to the full
    size. Depth is divided by the zoom, since the part looks like the whole from closer by.

    Args:
        scales: the scales to draw from, all alike, each >= 1.
    """

    def __init__(self, scales: list[float] = [1.0, 1.2, 1.5]) -> None:  # noqa: B006  (a list, for the YAML; never changed)
        super().__init__()
        if not scales or any(scale < 1 for scale in scales):
            raise ConfigError(f"RandomScaleCrop.scales is {scales}, expected one or more numbers >= 1")
        self.scales = list(scales)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window; called once a sample."""
        height, width = v2.query_size(flat_inputs)
        scale = self.scales[int(torch.randint(len(self.scales), ()))]
        cut_height, cut_width = max(1, round(height / scale)), max(1, round(width / scale))
        top = int(torch.randint(height - cut_height + 1, ()))
        left = int(torch.randint(width - cut_width + 1, ()))
        return {"top": top, "left": left, "height": cut_height, "width": cut_width, "size": [height, width]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut the window out of one part of the sample."""
        if [params["height"], params["width"]] == params["size"]:
            return inpt
        return F.resized_crop(inpt, **params)


def compose(transforms: Sequence[Transform], image_size: int | Sequence[int] | None = None) -> Transform:
    """The user's transforms in order, then the size, then :func:`finish`.

    Args:
        transforms: of ``torchvision.transforms.v2`` or any callable from sample to sample; they see the stored size.
        image_size: pixels of the square, or height and width, that a sample of another size is resized to (antialiased, the
            aspect ratio is not kept); None leaves what the transforms give.

    Returns:
        A callable from sample to sample that can be pickled (if the transforms can). It raises :class:`DataError` naming the
        sample where a transform cannot move a label.

    Raises:
        ConfigError: ``image_size`` is not one or two positive numbers.
    """
    if image_size is None:
        return partial(_run, list(transforms), None)
    size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
    if len(size) != 2 or any(side < 1 for side in size):
        raise ConfigError(f"image_size is {image_size}, expected one number of pixels >= 1 or two (height, width)")
    return partial(_run, list(transforms), v2.Resize(size, antialias=True))


def _run(transforms: list[Transform], resize: v2.Resize | None, sample: dict[str, Any]) -> dict[str, Any]:
    try:
        for transform in transforms:
            sample = transform(sample)
    except DataError as error:
        raise DataError(f"{sample['id']}: {error}") from error
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AssertionError) as error:
        size = "x".join(map(str, F.get_size(_image(sample))))
        advice = "; RandAugmentWithLabels and TrivialAugmentWithLabels move labels, too" if isinstance(transform, AUTO) else ""
        raise TransformError(
            f"{sample['id']}: the transform {_told(transform)} fails on this picture of {size} pixels: {error}{advice}"
        ) from error
    if resize is not None and F.get_size(_image(sample)) != resize.size:
        sample = resize(sample)
    return finish(sample)


def _told(transform: Transform) -> str:
    """A transform with its arguments, as far as they are few."""
    text = " ".join(repr(transform).split())
    return text if len(text) <= TOLD else type(transform).__name__


def each_picture(sample: dict[str, Any], inputs: Mapping[str, Sequence[str]], transform: Transform) -> dict[str, Any]:
    """Transform each picture of a sample by itself, together with the labels of the tasks that read it.

    Args:
        sample: with the pictures under the inputs' names.
        inputs: name → tasks that read it.
        transform: for a sample with one ``image``.
    """
    about: dict[str, Any] = {key: value for key, value in sample.items() if key in ("id", "size")}
    finished = dict(about)
    for name, tasks in inputs.items():
        if name in sample:
            part = transform(about | {"image": sample[name]} | {task: sample[task] for task in tasks if task in sample})
            finished |= {name if key == "image" else key: value for key, value in part.items()}
    return finished


def finish(sample: dict[str, Any]) -> dict[str, Any]:
    """Turn a sample's tv_tensors into the plain tensors of the batch contract.

    ``Image`` becomes float32 [C, H, W], integers scaled to 0..1; ``ClassMap`` int64 [H, W] with class indices and
    :data:`~mtl_lightning.batch.IGNORE` for none; ``Depth`` float32 with 0 where it was not finite; ``Normals`` float32 of unit
    length, or zero; ``BoundingBoxes`` float32 [4] x0, y0, x1, y1 as fractions of width and height, clamped to 0..1, and a box
    with nothing left inside the picture is a missing label: its key is gone. All else stays as it is.

    Args:
        sample: as transforms leave it; not changed.

    Raises:
        DataError: the image is no ``tv_tensors.Image`` any more, or a label holds other than one box.
    """
    _image(sample)
    finished: dict[str, Any] = {}
    for key, value in sample.items():
        match value:
            case tv_tensors.Image():
                finished[key] = F.to_dtype_image(value.as_subclass(Tensor), torch.float32, scale=True)
            case ClassMap():
                # 0, no label, becomes -1 by the same shift that brings the classes back.
                finished[key] = value.as_subclass(Tensor).long() - 1
            case Depth():
                finished[key] = value.as_subclass(Tensor).float().nan_to_num(0.0, 0.0, 0.0)
            case Normals():
                vectors = value.as_subclass(Tensor).float().nan_to_num(0.0, 0.0, 0.0)
                # torch's own norm over the first dimension takes 10 ms a picture, this 0.2 ms.
                finished[key] = vectors * vectors.square().sum(0).clamp_min(1e-24).rsqrt()
            case tv_tensors.BoundingBoxes():
                box = _fractions(value, f"{sample['id']}, task '{key}'")
                if box is not None:
                    finished[key] = box
            case _:
                finished[key] = value
    return finished


def _image(sample: dict[str, Any]) -> tv_tensors.Image:
    """The image; a plain tensor is refused, since by then the labels are plain too and nobody knows what they are."""
    image = sample["image"]
    if not isinstance(image, tv_tensors.Image):
        raise DataError(
            f"{sample['id']}: the image is a {type(image).__name__} after the transforms, expected a tv_tensors.Image; "
            "leave ToPureTensor, ToPILImage and the like out of the transforms: the last conversion is done for you"
        )
    return image


def _fractions(boxes: tv_tensors.BoundingBoxes, where: str) -> Tensor | None:
    """The one box's corners as fractions of the picture; None if nothing of it is inside."""
    if len(boxes) != 1:
        raise DataError(f"{where}: the label holds {len(boxes)} boxes, expected exactly one; keep rows with one object")
    plain, kind = boxes.as_subclass(Tensor).float(), boxes.format
    target = CORNERS.get(kind, tv_tensors.BoundingBoxFormat.XYXY)
    points = F.convert_bounding_box_format(plain, old_format=kind, new_format=target).view(-1, 2)
    height, width = boxes.canvas_size
    points = (points / points.new_tensor([width, height])).clamp(0, 1)
    box = torch.cat([points.amin(0), points.amax(0)])
    return box if bool((box[2:] > box[:2]).all()) else None
