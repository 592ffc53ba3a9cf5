"""Recurrent encoders of texts."""

import torch
from torch import Tensor, nn

from mtl_lightning.encoders.base import Stage
from mtl_lightning.encoders.text.base import Embedding, TextEncoder, as_map, as_words, check_dropout, check_numbers
from mtl_lightning.features import Features, FeatureSpec


class GRUStage(Stage):
    """A gated recurrent unit along the words, and another one against them.

    The second reads each text turned round within its own length, so that it starts at the last word and not at padding.
    That needs no packed sequences, which ``torch.export`` cannot follow.

    Args:
        in_channels: of the words.
        width: of each direction.
        bidirectional: whether there is the second.
        dropout: share of values left out in training.
    """

    def __init__(self, in_channels: int, width: int, bidirectional: bool, dropout: float) -> None:
        super().__init__(nn.GRU(in_channels, width, batch_first=True), FeatureSpec(width * (1 + bidirectional)))
        self.backward_body = nn.GRU(in_channels, width, batch_first=True) if bidirectional else None
        self.dropout = nn.Dropout(dropout)

    def step(self, features: Features) -> Features:
        """From map to map."""
        words = as_words(features)
        out = self.body(words)[0]
        if self.backward_body is not None:
            order = _turned(words, features.valid)
            against = self.backward_body(words.gather(1, order.expand_as(words)))[0]
            out = torch.cat([out, against.gather(1, order.expand_as(against))], dim=2)
        return features.like(as_map(self.dropout(out)))


def _turned(words: Tensor, valid: Tensor | None) -> Tensor:
    """int64 [B, L, 1]: which word comes where when each text is turned round; padding stays. It is its own opposite."""
    place = torch.arange(words.shape[1], device=words.device)[None]
    if valid is None:
        return place.flip(1).expand(len(words), -1)[..., None]
    length = (valid.flatten(1) > 0).sum(1, keepdim=True)
    return torch.where(place < length, length - 1 - place, place)[..., None]


class TextGRU(TextEncoder):
    """Gated recurrent units (Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014) over words.

    Stages: the embedding; then, one each, ``layers`` layers of one or two directions with dropout. A layer of width H on C
    channels has 3 H (C + H + 2) weights a direction, used once a word; words are read one after the other, so it is slow on
    long texts.

    Args:
        vocabulary: number of ids, padding (0) and unknown words (1) included.
        width: of the word vectors.
        hidden: of the state, for each direction.
        layers: each is a stage.
        bidirectional: read each text from its end, too; the map has twice as many channels.
        dropout: share of values left out in training behind each stage, in [0, 1).
        stages: how many of the stages, from the first on; null takes all.
        weights: the path of a checkpoint of ours or of a state_dict file of such an encoder; null starts from random weights.
        strict: whether missing and unexpected tensors in the weights are an error.

    Raises:
        ConfigError: a number out of its range, or weights that are missing, broken or another encoder's.
    """

    def __init__(
        self,
        vocabulary: int = 8000,
        width: int = 128,
        hidden: int = 64,
        layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.2,
        stages: int | None = None,
        weights: str | None = None,
        strict: bool = True,
    ) -> None:
        check_numbers(vocabulary=vocabulary, width=width, hidden=hidden, layers=layers)
        check_dropout(dropout)
        made: list[Stage] = [Embedding(vocabulary, width, dropout)]
        for _ in range(layers):
            made.append(GRUStage(made[-1].spec.channels, hidden, bidirectional, dropout))
        super().__init__(vocabulary, made, stages, weights, strict)
