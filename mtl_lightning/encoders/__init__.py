"""Backbones as sequences of stages."""

from mtl_lightning.encoders.base import Encoder, ImageEncoder, Stage
from mtl_lightning.encoders.convnext import ConvNeXt
from mtl_lightning.encoders.densenet import DenseNet
from mtl_lightning.encoders.efficientnet import EfficientNet
from mtl_lightning.encoders.googlenet import GoogLeNet
from mtl_lightning.encoders.mobilenet import MobileNet
from mtl_lightning.encoders.regnet import RegNet
from mtl_lightning.encoders.resnet import ResNet
from mtl_lightning.encoders.small import SmallCNN
from mtl_lightning.encoders.swin import Swin
from mtl_lightning.encoders.text import BagOfWords, TextAttention, TextEncoder, TextGRU, TextTransformer
from mtl_lightning.encoders.timm import Timm
from mtl_lightning.encoders.vgg import VGG
from mtl_lightning.encoders.vit import ViT

__all__ = [
    "VGG",
    "BagOfWords",
    "ConvNeXt",
    "DenseNet",
    "EfficientNet",
    "Encoder",
    "GoogLeNet",
    "ImageEncoder",
    "MobileNet",
    "RegNet",
    "ResNet",
    "SmallCNN",
    "Stage",
    "Swin",
    "TextAttention",
    "TextEncoder",
    "TextGRU",
    "TextTransformer",
    "Timm",
    "ViT",
]
