"""Words that look at each other."""

from torch import nn

from mtl_lightning.encoders.base import Stage
from mtl_lightning.encoders.text.base import ARGS, Embedding, TextEncoder, as_map, as_words, check_dropout, check_numbers, ignored
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec


class AttentionStage(Stage):
    """Normalise, attend, add: padding is looked at by none.

    Args:
        width: of the words, and of what comes out.
        heads: of the attention.
        dropout: share of values left out in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(nn.MultiheadAttention(width, heads, batch_first=True), FeatureSpec(width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def step(self, features: Features) -> Features:
        """From map to map."""
        words = as_words(features)
        normed = self.norm(words)
        found, _ = self.body(normed, normed, normed, key_padding_mask=ignored(features), need_weights=False)
        return features.like(as_map(words + self.dropout(found)))


class TextAttention(TextEncoder):
    """Layers of multi-head self-attention with nothing in between.

    The attention of Vaswani et al., "Attention Is All You Need", NIPS 2017, normalised before and added after; without the
    fully connected layers of :class:`~mtl_lightning.encoders.text.TextTransformer`, and with positions only if asked for:
    without them the order of the words does not matter. With the head ``AttentionPooling``, which is the other half of it,
    this is close to Lin et al., "A Structured Self-Attentive Sentence Embedding", ICLR 2017.

    Stages: the embedding; then, one each, the layers. A layer has about 4 * width² weights, used once a word, and looks at all
    pairs of words.

    Args:
        vocabulary: number of ids, padding (0) and unknown words (1) included.
        width: of the word vectors and of all stages.
        layers: each is a stage.
        heads: of the attention; they must divide ``width``.
        positions: whether words know where they stand.
        max_length: with positions, the most words that a text may have; at least the tokenizer's.
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
        layers: int = 1,
        heads: int = 4,
        positions: bool = False,
        max_length: int = 64,
        dropout: float = 0.2,
        stages: int | None = None,
        weights: str | None = None,
        strict: bool = True,
    ) -> None:
        check_numbers(vocabulary=vocabulary, width=width, layers=layers, heads=heads, max_length=max_length)
        check_heads(width, heads)
        check_dropout(dropout)
        made: list[Stage] = [Embedding(vocabulary, width, dropout, max_length if positions else None)]
        made += [AttentionStage(width, heads, dropout) for _ in range(layers)]
        super().__init__(vocabulary, made, stages, weights, strict)


def check_heads(width: int, heads: int) -> None:
    """Raise :class:`ConfigError` unless the heads divide the width."""
    if width % heads:
        raise ConfigError(f"{ARGS}.heads is {heads}, expected a divisor of {ARGS}.width, {width}")
