"""From a text to the ids of its words: a tokeniser that is learnt from the training texts and travels in checkpoints."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from mtl_lightning.errors import ConfigError, MTLError

KEY = "data.init_args.tokenizer"
PAD, UNKNOWN = "[PAD]", "[UNK]"
UNKNOWN_ID = 1


@dataclass
class TokenizerOptions:
    """How texts become ids.

    Attributes:
        kind: ``word`` takes whole words (and punctuation marks); ``bpe`` parts of words (byte-pair encoding, Sennrich et al., ACL
            2016), so that hardly anything is unknown.
        vocabulary: the most ids there may be, 0 for padding and 1 for what is unknown included.
        lowercase: whether capitals do not matter.
        min_count: occurrences in the training texts below which a word is unknown (a part: is not merged).
        max_length: words that are read of a text; the rest is cut off.
        file: the JSON of a tokeniser of the ``tokenizers`` library to take instead of learning one, with its own settings but
            for ``max_length``: such as the one beside an exported model.
    """

    kind: Literal["word", "bpe"] = "word"
    vocabulary: int = 8000
    lowercase: bool = True
    min_count: int = 1
    max_length: int = 64
    file: str | None = None

    def check(self) -> None:
        """Raise :class:`ConfigError` for numbers out of their range.

        Not done when built, since the command line would wrap the message in its own.
        """
        for key, least in {"vocabulary": 3, "min_count": 1, "max_length": 1}.items():
            if getattr(self, key) < least:
                raise ConfigError(f"{KEY}.{key} is {getattr(self, key)}, expected {least} or more")


class Tokenizer:
    """A tokeniser of HuggingFace's ``tokenizers`` library whose id 0 is padding.

    Args:
        text: its JSON.
        source: where that is from, for messages.

    Raises:
        ConfigError: the library is missing, or the JSON is broken or another's.
    """

    def __init__(self, text: str, source: str = "the checkpoint's tokenizer") -> None:
        try:
            self._encoder = _library().Tokenizer.from_str(text)
        except MTLError:
            raise
        except Exception as error:  # the library raises nothing more specific
            raise ConfigError(f"{source} is no JSON of a tokenizer of the library tokenizers ({error})") from error
        self._encoder.no_padding()
        if self._encoder.token_to_id(PAD) != 0:
            raise ConfigError(f"{source}: its id 0 is not {PAD}, which is what texts of a batch are filled up with; take another")

    @classmethod
    def learn(cls, options: TokenizerOptions, texts: Iterable[str]) -> Self:
        """Learn the words of some texts, or read ``options.file``; the same texts in any order give the same tokeniser.

        Args:
            options: checked.
            texts: of the training split.

        Raises:
            ConfigError: the library or the file is missing or broken.
        """
        if options.file is not None:
            path = Path(options.file)
            if not path.is_file():
                raise ConfigError(f"{KEY}.file: there is no file {path}; give a tokenizer's JSON, or null to learn one")
            made = cls(path.read_text(encoding="utf-8", errors="replace"), f"{KEY}.file {path}")
            made._encoder.enable_truncation(options.max_length)
            return made
        library = _library()
        encoder, trainer = _KINDS[options.kind](library, options)
        steps = [library.normalizers.NFKC()] + ([library.normalizers.Lowercase()] if options.lowercase else [])
        encoder.normalizer = library.normalizers.Sequence(steps)
        # A mark before each word rather than one on its parts: of marked parts the library's order is not always the same.
        marks = [library.pre_tokenizers.Metaspace()] if options.kind == "bpe" else []
        encoder.pre_tokenizer = library.pre_tokenizers.Sequence([library.pre_tokenizers.Whitespace(), *marks])
        encoder.train_from_iterator(sorted(texts), trainer)
        encoder.enable_truncation(options.max_length)
        return cls(encoder.to_str())

    @property
    def json(self) -> str:
        """All there is to it, as text."""
        return str(self._encoder.to_str())

    @property
    def size(self) -> int:
        """How many ids there are."""
        return int(self._encoder.get_vocab_size())

    @property
    def max_length(self) -> int:
        """Words that are read of a text."""
        return int(self._encoder.truncation["max_length"])

    def ids(self, text: str) -> Tensor:
        """int64 [L], L >= 1: a text without any word is one unknown word."""
        return torch.tensor(self._encoder.encode(text).ids or [UNKNOWN_ID])

    def survey(self, texts: Iterable[str]) -> dict[str, float]:
        """Of some texts the ``longest`` in words, the share that is ``cut`` off somewhere, and of all words those ``unknown``."""
        whole, limit = type(self)(self.json)._encoder, self.max_length
        whole.no_truncation()
        found = [encoding.ids for encoding in whole.encode_batch(list(texts))]
        lengths = [len(ids) for ids in found]
        unknown = sum(ids.count(UNKNOWN_ID) for ids in found)
        return {
            "longest": max(lengths, default=0),
            "cut": sum(length > limit for length in lengths) / max(1, len(lengths)),
            "unknown": unknown / max(1, sum(lengths)),
        }


def _word(library: Any, options: TokenizerOptions) -> tuple[Any, Any]:
    encoder = library.Tokenizer(library.models.WordLevel(unk_token=UNKNOWN))
    return encoder, library.trainers.WordLevelTrainer(**_common(options))


def _bpe(library: Any, options: TokenizerOptions) -> tuple[Any, Any]:
    encoder = library.Tokenizer(library.models.BPE(unk_token=UNKNOWN))
    return encoder, library.trainers.BpeTrainer(**_common(options))


_KINDS = {"word": _word, "bpe": _bpe}


def _common(options: TokenizerOptions) -> dict[str, Any]:
    return {
        "vocab_size": options.vocabulary,
        "min_frequency": options.min_count,
        "special_tokens": [PAD, UNKNOWN],
        "show_progress": False,
    }


def _library() -> Any:
    # Before the library's first use: its threads do not survive the fork into a loader's workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return import_module("tokenizers")
    except ImportError as error:
        raise ConfigError(f"texts need the library tokenizers: pip install 'mtl-lightning[text]' ({error})") from error
