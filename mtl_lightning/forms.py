"""What goes into an exported model: example inputs, which of their sides are free, and what its description says of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import Dim

from mtl_lightning.encoders.base import Encoder, ImageEncoder
from mtl_lightning.errors import ConfigError

Size = int | tuple[int, int] | Literal["any"]
EXAMPLE = (160, 192)
"""Height and width of the example that a network for any size is traced with."""


class Form(ABC):
    """The one input of an exported model.

    Attributes:
        name: of the input.
        fixed: an example of a fixed size, for messages.
        files: what is written beside the model, text by the end of its name.
    """

    name: str
    fixed: int
    files: dict[str, str]

    @property
    @abstractmethod
    def free(self) -> dict[int, Any]:
        """Dimensions beside the batch that may have any size, as ``torch.export`` wants them."""

    @abstractmethod
    def example(self, rows: int, other: bool, generator: torch.Generator | None = None) -> Tensor:
        """A random input; with ``other`` of another size than the trace's, where sizes are free."""

    @abstractmethod
    def describe(self, encoders: Sequence[Encoder]) -> dict[str, Any]:
        """For the JSON file beside the model."""


class PictureForm(Form):
    """Pictures [B, C, H, W] in 0..1.

    Args:
        channels: 1 or 3.
        size: side, or height and width, or any.
        transforms: of evaluation, in words.
    """

    name = "image"
    fixed = 224

    def __init__(self, channels: int, size: Size, transforms: Sequence[str]) -> None:
        self.channels, self.any, self.transforms = channels, size == "any", list(transforms)
        self.sides = EXAMPLE if isinstance(size, str) else (size, size) if isinstance(size, int) else (size[0], size[1])
        self.files = {}

    @property
    def free(self) -> dict[int, Any]:
        """Height and width."""
        return {2: Dim("height", min=32, max=8192), 3: Dim("width", min=32, max=8192)} if self.any else {}

    def example(self, rows: int, other: bool, generator: torch.Generator | None = None) -> Tensor:
        """Noise."""
        height, width = (self.sides[0] + 13, self.sides[1] + 6) if other and self.any else self.sides
        return torch.rand(rows, self.channels, height, width, generator=generator)

    def describe(self, encoders: Sequence[Encoder]) -> dict[str, Any]:
        """Shape, range, what happens to pictures before, and the normalisation inside."""
        inside = [encoder for encoder in encoders if isinstance(encoder, ImageEncoder)]
        return {
            "name": self.name,
            "shape": ["batch", self.channels, *(["height", "width"] if self.any else self.sides)],
            "range": [0, 1],
            "channels": "RGB" if self.channels == 3 else "grey",
            "resize": "none" if self.any else "bilinear, antialiased, to this height and width",
            "eval_transforms": self.transforms,
            "normalisation": {
                "inside": True,
                "mean": [encoder.mean.flatten().tolist() for encoder in inside],
                "std": [encoder.std.flatten().tolist() for encoder in inside],
            },
        }


class TextForm(Form):
    """Token ids int64 [B, L], padded with 0 at the end.

    Args:
        vocabulary: ids are below it.
        length: L; None is any.
        longest: words that the tokeniser reads of a text.
        tokenizer: its JSON.
    """

    name = "text"

    def __init__(self, vocabulary: int, size: Size | None, longest: int, tokenizer: str) -> None:
        if isinstance(size, tuple):
            raise ConfigError(f"--size is {list(size)}, expected a number of words, or any: the model reads texts")
        self.vocabulary, self.any, self.longest = vocabulary, size == "any", longest
        self.fixed = longest
        self.length = size if isinstance(size, int) else longest
        self.files = {".tokenizer.json": tokenizer}

    @property
    def free(self) -> dict[int, Any]:
        """The number of words."""
        return {1: Dim("words", min=2, max=max(3, self.longest))} if self.any else {}

    def example(self, rows: int, other: bool, generator: torch.Generator | None = None) -> Tensor:
        """Random words, the later rows with more and more padding."""
        length = max(2, self.length // 2) if other and self.any else self.length
        ids = torch.randint(1, max(2, self.vocabulary), (rows, length), generator=generator)
        lengths = torch.tensor([max(1, length - row * length // 4) for row in range(rows)])
        return ids * (torch.arange(length) < lengths[:, None])

    def describe(self, encoders: Sequence[Encoder]) -> dict[str, Any]:
        """Shape, type, and where the tokeniser is."""
        return {
            "name": self.name,
            "shape": ["batch", "words" if self.any else self.length],
            "type": "int64",
            "padding": "0, at the end",
            "max_words": self.longest,
            "ids_below": self.vocabulary,
            "tokenizer": "the file beside this one that ends in .tokenizer.json, for tokenizers.Tokenizer.from_file",
        }
