"""Words without their order."""

from torch import nn

from mtl_lightning.encoders.base import Stage
from mtl_lightning.encoders.text.base import Embedding, TextEncoder, check_dropout, check_numbers
from mtl_lightning.features import FeatureSpec


class BagOfWords(TextEncoder):
    """Word embeddings, each sent through the same small network; a head that averages them sees a bag of words.

    As the deep averaging networks of Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text
    Classification", ACL 2015, but for the order of the steps: there the average goes through the network, here the words do,
    so that there are maps between the stages. Nothing tells a word where it stands.

    Stages: the embedding; then, one each, a fully connected layer per word with ReLU and dropout. Weights: vocabulary * width,
    then the layers'; a word costs the layers alone.

    Args:
        vocabulary: number of ids, padding (0) and unknown words (1) included.
        width: of the word vectors.
        hidden: widths of the layers; each is a stage.
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
        hidden: list[int] = [128],  # noqa: B006
        dropout: float = 0.2,
        stages: int | None = None,
        weights: str | None = None,
        strict: bool = True,
    ) -> None:
        check_numbers(vocabulary=vocabulary, width=width, hidden=min(hidden, default=1))
        check_dropout(dropout)
        made: list[Stage] = [Embedding(vocabulary, width, dropout)]
        before = width
        for channels in hidden:
            body = nn.Sequential(nn.Conv2d(before, channels, 1), nn.ReLU(), nn.Dropout(dropout))
            made.append(Stage(body, FeatureSpec(channels)))
            before = channels
        super().__init__(vocabulary, made, stages, weights, strict)
