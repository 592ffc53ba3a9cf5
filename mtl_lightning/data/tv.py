"""Labels that are pictures, as ``tv_tensors``: every geometric ``torchvision.transforms.v2`` moves them with the image.

How each kind moves is registered in :mod:`mtl_lightning.data.geometry`.
"""

from torchvision import tv_tensors


class DenseLabel(tv_tensors.Mask):  # type: ignore[misc]  # torchvision has no types
    """A label for every pixel in which zeros mean that there is none, so that what a transform fills in is unlabelled.

    It is never interpolated: each value that comes out of a transform went in (depth and normals apart from the change of
    scale and direction that the movement itself brings).
    """


class ClassMap(DenseLabel):
    """Classes [H, W], any integer type: class index + 1, 0 where there is no label."""


class Depth(DenseLabel):
    """Depth [1, H, W], float, in metres, 0 where there is none."""


class Normals(DenseLabel):
    """Surface normals [3, H, W], float: x to the right, y UP, z towards the viewer; the zero vector where there is none."""


from mtl_lightning.data import geometry as _geometry  # noqa: E402, F401  (registers the movements; needs the classes above)
