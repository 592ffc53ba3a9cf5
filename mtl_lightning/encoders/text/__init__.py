"""Encoders of texts: token ids in, maps of height 1 out, a cell for each word."""

from mtl_lightning.encoders.text.attention import TextAttention
from mtl_lightning.encoders.text.bag import BagOfWords
from mtl_lightning.encoders.text.base import TextEncoder
from mtl_lightning.encoders.text.gru import TextGRU
from mtl_lightning.encoders.text.transformer import TextTransformer

__all__ = ["BagOfWords", "TextAttention", "TextEncoder", "TextGRU", "TextTransformer"]
