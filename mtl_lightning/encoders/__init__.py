"""Backbones as sequences of stages."""

from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.encoders.googlenet import GoogLeNet
from mtl_lightning.encoders.resnet import ResNet
from mtl_lightning.encoders.small import SmallCNN
from mtl_lightning.encoders.vgg import VGG

__all__ = ["VGG", "Encoder", "GoogLeNet", "ResNet", "SmallCNN", "Stage"]
