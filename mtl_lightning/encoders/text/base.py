"""What all encoders of texts share: the check of the ids, the padding, the embedding."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_lightning.encoders.base import Encoder, Stage
from mtl_lightning.encoders.weights import load_own
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec

ARGS = "model.encoder.init_args"


class Embedding(Stage):
    """A vector for each word, and for each place in the text if asked for; the first stage of every text encoder.

    Args:
        vocabulary: ids are below it; 0 is padding.
        width: of the vectors.
        dropout: share of their values left out in training.
        positions: places that have a vector; None takes no notice of places.
    """

    def __init__(self, vocabulary: int, width: int, dropout: float, positions: int | None = None) -> None:
        super().__init__(nn.Embedding(vocabulary, width, padding_idx=0), FeatureSpec(width))
        self.dropout = nn.Dropout(dropout)
        self.positions = None if positions is None else nn.Embedding(positions, width)
        for table in (self.body, self.positions):
            if table is not None:
                nn.init.normal_(table.weight, std=width**-0.5)  # type: ignore[arg-type]

    def step(self, features: Features) -> Features:
        """From ids [B, L] to a map [B, width, 1, L]."""
        vectors = self.body(features.tensor)
        if self.positions is not None:
            vectors = vectors + self.positions.weight[: vectors.shape[1]]  # type: ignore[index]
        return features.like(as_map(self.dropout(vectors)))


class TextEncoder(Encoder):
    """A backbone for texts.

    The input is int64 token ids [B, L], padded with 0 at the end; no words in the middle may be 0. Every stage gives a map
    [B, C, 1, L] of stride 1 with the words that are there as ``valid``: padding changes no result.

    Args:
        vocabulary: ids are below it; 0 is padding.
        stages: in order, the first one is an :class:`Embedding`.
        take: how many of the stages, from the first on; None takes all.
        weights: the path of a checkpoint of ours or of a state_dict file of such an encoder; None starts from random weights.
        strict: whether missing and unexpected tensors in the weights are an error.

    Raises:
        ConfigError: more stages than there are, or weights that are missing, broken or another encoder's.
    """

    def __init__(
        self,
        vocabulary: int,
        stages: Sequence[Stage],
        take: int | None = None,
        weights: str | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__(stages, take)
        self.vocabulary = vocabulary
        load_own(self, weights, "stages.0.body.weight", strict)

    @property
    def longest(self) -> int | None:
        """The most words that a text may have; None where there is no limit."""
        positions = self.stages[0].positions
        return None if positions is None else int(positions.num_embeddings)  # type: ignore[union-attr, arg-type]

    def start(self, source: Features) -> Features:
        """Check the ids, and tell words from padding."""
        ids = source.tensor
        if ids.ndim != 2 or ids.is_floating_point():
            raise ConfigError(
                f"model.encoder {type(self).__name__} reads texts (token ids [B, L], int64), the data gives "
                f"{list(ids.shape)} of {ids.dtype}; take an encoder of pictures (SmallCNN, ResNet, …), or a data module of texts"
            )
        # Elsewhere than on the CPU a look at the ids would wait for the device; data modules compare vocabularies before.
        if not torch.compiler.is_compiling() and ids.device.type == "cpu" and ids.numel():
            low, high = (int(side) for side in ids.aminmax())
            if low < 0 or high >= self.vocabulary:
                raise ConfigError(
                    f"{ARGS}.vocabulary is {self.vocabulary}, the data gives the id {high if low >= 0 else low}; set it to the "
                    "vocabulary of the tokenizer (data.init_args.tokenizer.vocabulary) or more"
                )
        if not torch.compiler.is_compiling() and self.longest is not None and ids.shape[1] > self.longest:
            raise ConfigError(
                f"{ARGS}.max_length is {self.longest}, the data gives texts of {ids.shape[1]} words; set it to the tokenizer's "
                "(data.init_args.tokenizer.max_length) or more"
            )
        table: Tensor = self.stages[0].body.weight  # type: ignore[union-attr, assignment]
        return Features(ids, (ids != 0).to(table.dtype)[:, None, None])


def check_numbers(**numbers: int) -> None:
    """Raise :class:`ConfigError` unless all are 1 or more."""
    for key, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{ARGS}.{key} is {value}, expected 1 or more")


def check_dropout(dropout: float) -> None:
    """Raise :class:`ConfigError` for no share in [0, 1)."""
    if not 0 <= dropout < 1:
        raise ConfigError(f"{ARGS}.dropout is {dropout}, expected a share in [0, 1)")


def as_words(features: Features) -> Tensor:
    """A map [B, C, 1, L] as [B, L, C]."""
    return features.tensor.squeeze(2).transpose(1, 2)


def as_map(words: Tensor) -> Tensor:
    """[B, L, C] as a map [B, C, 1, L]."""
    return words.transpose(1, 2).unsqueeze(2)


def ignored(features: Features) -> Tensor | None:
    """Bool [B, L]: words that nobody may look at; None where there is no padding known.

    In a row of padding alone everybody may look at everything: a softmax over nothing is no number. Its cells become 0 anyway.
    """
    if features.valid is None:
        return None
    padding = features.valid.flatten(1) == 0
    return padding & ~padding.all(1, keepdim=True)
