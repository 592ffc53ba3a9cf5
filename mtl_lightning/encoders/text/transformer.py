"""A small transformer over words."""

from torch import nn

from mtl_lightning.encoders.base import Stage
from mtl_lightning.encoders.text.attention import check_heads
from mtl_lightning.encoders.text.base import Embedding, TextEncoder, as_map, as_words, check_dropout, check_numbers, ignored
from mtl_lightning.features import Features, FeatureSpec


class TransformerStage(Stage):
    """One layer of a transformer; padding is looked at by none.

    Args:
        width: of the words, and of what comes out.
        heads: of the attention.
        hidden: of the fully connected layers.
        dropout: share of values left out in training.
        norm: whether what comes out is normalised, for the last layer.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, norm: bool) -> None:
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout, "gelu", batch_first=True, norm_first=True)
        super().__init__(layer, FeatureSpec(width))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def step(self, features: Features) -> Features:
        """From map to map."""
        words = self.body(as_words(features), src_key_padding_mask=ignored(features))
        return features.like(as_map(self.norm(words)))


class TextTransformer(TextEncoder):
    """A transformer (Vaswani et al., "Attention Is All You Need", NIPS 2017) over words, small by default.

    Normalised before each step and not after it, with GELU and learnt positions (all as in GPT-2; the paper normalises
    after, with ReLU and sines); the last layer ends with a norm.

    Stages: the embedding with the positions; then, one each, the layers. A layer has about 4 * width² + 2 * width * feedforward
    weights, used once a word, and looks at all pairs of words.

    Args:
        vocabulary: number of ids, padding (0) and unknown words (1) included.
        width: of the word vectors and of all stages.
        layers: each is a stage.
        heads: of the attention; they must divide ``width``.
        feedforward: width of the fully connected layer in each layer; null is twice ``width``.
        max_length: the most words that a text may have; at least the tokenizer's.
        dropout: share of values left out in training, in [0, 1).
        stages: how many of the stages, from the first on; null takes all (a part has no norm at its end).
        weights: the path of a checkpoint of ours or of a state_dict file of such an encoder; null starts from random weights.
        strict: whether missing and unexpected tensors in the weights are an error.

    Raises:
        ConfigError: a number out of its range, or weights that are missing, broken or another encoder's.
    """

    def __init__(
        self,
        vocabulary: int = 8000,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        feedforward: int | None = None,
        max_length: int = 64,
        dropout: float = 0.2,
        stages: int | None = None,
        weights: str | None = None,
        strict: bool = True,
    ) -> None:
        hidden = 2 * width if feedforward is None else feedforward
        check_numbers(vocabulary=vocabulary, width=width, layers=layers, heads=heads, feedforward=hidden, max_length=max_length)
        check_heads(width, heads)
        check_dropout(dropout)
        made: list[Stage] = [Embedding(vocabulary, width, dropout, max_length)]
        made += [TransformerStage(width, heads, hidden, dropout, norm=layer == layers - 1) for layer in range(layers)]
        super().__init__(vocabulary, made, stages, weights, strict)
