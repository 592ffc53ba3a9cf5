"""From feature pyramids to raw predictions."""

from mtl_lightning.heads.aspp import ASPP
from mtl_lightning.heads.attention import AttentionPooling
from mtl_lightning.heads.base import Head
from mtl_lightning.heads.fcn import FCN
from mtl_lightning.heads.fpn import FPN
from mtl_lightning.heads.linear import Linear
from mtl_lightning.heads.mlp import MLP
from mtl_lightning.heads.token import ClassToken
from mtl_lightning.heads.unet import UNet

__all__ = ["ASPP", "FCN", "FPN", "MLP", "AttentionPooling", "ClassToken", "Head", "Linear", "UNet"]
