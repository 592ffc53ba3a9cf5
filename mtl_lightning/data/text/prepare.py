"""From a text to what the network sees of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtl_lightning.data.text.tokens import Tokenizer
from mtl_lightning.errors import DataError
from mtl_lightning.forms import Size, TextForm
from mtl_lightning.frame import Frame
from mtl_lightning.inputs import TEXT


def blank() -> Tensor:
    """A white picture [1, 8, 8], where a picture is asked for and there is a text."""
    return torch.ones(1, 8, 8)


class PreparedText(NamedTuple):
    """One text for the network.

    Attributes:
        id: its name.
        text: as it was given.
        ids: int64 [L].
    """

    id: str
    text: str
    ids: Tensor

    @property
    def input(self) -> str:
        """Where the network reads it."""
        return TEXT

    @property
    def tensor(self) -> Tensor:
        """What the network reads."""
        return self.ids

    @property
    def inputs(self) -> None:
        """There is one."""
        return None

    def seen_by(self, task: str, reads: Mapping[str, str]) -> "PreparedText":
        """What a task reads of it."""
        return self

    @property
    def image(self) -> Tensor:
        """What stands behind the drawn text."""
        return blank()

    @property
    def frame(self) -> Frame:
        """A row of words."""
        return Frame.whole((1, len(self.ids)), (1, len(self.ids)))


class TextPreparation:
    """The run's tokeniser.

    Args:
        tokenizer: learnt from the training texts.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def take(self, item: Any, number: int, known: Sequence[str] = ()) -> PreparedText:
        """Prepare a text, the number-th that was given; raises :class:`DataError` where it is none. It is the one input."""
        if not isinstance(item, str):
            raise DataError(f"text {number} is a {type(item).__name__}, expected a string: this model reads texts")
        return self.prepare(item, f"text {number}")

    def sample(self, sample: Mapping[str, Any]) -> PreparedText:
        """Prepare a row of a data set."""
        return self.prepare(sample["text"], str(sample["id"]))

    def prepare(self, text: str, name: str) -> PreparedText:
        """Prepare a text under a name."""
        return PreparedText(name, text, self.tokenizer.ids(text))

    def form(self, size: Size | None) -> TextForm:
        """What an exported model reads; None takes the most words that the tokeniser gives."""
        return TextForm(self.tokenizer.size, size, self.tokenizer.max_length, self.tokenizer.json)

    def state(self) -> dict[str, str]:
        """For checkpoints."""
        return {"tokenizer": self.tokenizer.json}

    @classmethod
    def restored(cls, state: Mapping[str, str]) -> "TextPreparation":
        """Out of a checkpoint."""
        return cls(Tokenizer(state["tokenizer"]))
