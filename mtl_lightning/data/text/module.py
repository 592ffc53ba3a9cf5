"""What data modules of texts share: the tokeniser."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.data.dataset import LabelledDataset, SomeRows
from mtl_lightning.data.pictures import OnError
from mtl_lightning.data.text.dataset import TextDataset, TextsToPredict, Tokenise, find_texts
from mtl_lightning.data.text.prepare import TextPreparation
from mtl_lightning.data.text.tokens import KEY, Tokenizer, TokenizerOptions
from mtl_lightning.data.transforms import Transform
from mtl_lightning.data.workers import WORKER_TIMEOUT
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.encoders.text import TextEncoder
from mtl_lightning.errors import ConfigError
from mtl_lightning.inputs import TEXT
from mtl_lightning.tasks.base import Task


class TextDataModule(MultiTaskDataModule):
    """Batches of texts that carry some of the labels.

    The tokeniser is learnt from the texts of the training split, labelled or not, and is in every checkpoint.

    Args:
        tokenizer: see :class:`~mtl_lightning.data.text.tokens.TokenizerOptions`; null takes whole words, at most 8000.
        word_dropout: share of the words of a training text that become unknown, drawn anew in every epoch: the network learns
            what to make of unknown words, and not to trust single ones.
        batch_size: rows per process and step.
        seed: of shuffling and word dropout; None takes the run's ``seed_everything``.
        num_workers: processes that prepare batches; texts are cheap, so there are none by default.
        pin_memory: page-locked batches; None means yes where a GPU is found.
        drop_last: leave out an incomplete last training batch; None only does so where it would be a single row.
        balance: a classification task whose classes come equally often in training: rows of rare ones several times an epoch,
            of frequent ones not in every epoch. Rows without its label keep their share, and epochs their length.
        worker_timeout: seconds that a batch may take in the workers before the run ends with an error, > 0; 0 waits for ever.

    Raises:
        ConfigError: a number out of its range.
    """

    column = "text"

    def __init__(
        self,
        tokenizer: TokenizerOptions | None = None,
        word_dropout: float = 0.0,
        batch_size: int = 32,
        seed: int | None = None,
        num_workers: int | None = 0,
        pin_memory: bool | None = None,
        drop_last: bool | None = None,
        balance: str | None = None,
        worker_timeout: float = WORKER_TIMEOUT,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
            pin_memory=pin_memory,
            drop_last=drop_last,
            balance=balance,
            worker_timeout=worker_timeout,
        )
        self.inputs = [TEXT]
        self.options = tokenizer if tokenizer is not None else TokenizerOptions()
        self.options.check()
        if not 0 <= word_dropout < 1:
            raise ConfigError(f"data.init_args.word_dropout is {word_dropout}, expected a share in [0, 1)")
        self.word_dropout = word_dropout
        self._tokenizer: Tokenizer | None = None

    @abstractmethod
    def read(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        """As :meth:`datasets`, of :class:`~mtl_lightning.data.text.dataset.TextDataset`."""

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        """Build the splits; raises :class:`ConfigError` for tasks that texts have no labels for."""
        for name, task in tasks.items():
            if task.kind in ("mask", "depth", "normals"):
                raise ConfigError(
                    f"task '{name}' is a {type(task).__name__}, which predicts for each pixel, and the data are texts; take a "
                    "task with one label a row (Classification, MultiLabel, Regression, …), or leave it out with model.only"
                )
        return self.read(tasks, splits)

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's."""
        if self._tokenizer is None:
            raise ConfigError("there is no tokenizer yet: it is learnt in setup, or comes with a checkpoint (--ckpt_path)")
        return self._tokenizer

    def adopt(self, splits: Mapping[str, LabelledDataset], shown: Sequence[str] | None = None) -> None:
        """As in the parent; the training split's texts give the tokeniser."""
        if "train" in splits and self._tokenizer is None:
            train = _texts(splits["train"])
            self._tokenizer = Tokenizer.learn(self.options, train)
            if shown is None:
                self._tell(splits, len(train))
        super().adopt(splits, shown)

    def _tell(self, splits: Mapping[str, LabelledDataset], count: int) -> None:
        parts = {split: self.tokenizer.survey(_texts(dataset)) for split, dataset in splits.items() if split != "test"}
        unknown = ", ".join(f"{100 * part['unknown']:.1f} % of {split}" for split, part in parts.items())
        cut = max(part["cut"] for part in parts.values())
        cuts = f"; {100 * cut:.1f} % of the texts are longer and cut off: raise {KEY}.max_length" if cut else ""
        learnt = "read from a file" if self.options.file else f"learnt from {count} training texts"
        rank_zero_info(
            f"Tokenizer: {self.tokenizer.size} ids, {learnt}; words unknown to it: {unknown}; the longest text has "
            f"{max(part['longest'] for part in parts.values())} of at most {self.tokenizer.max_length} words{cuts}"
        )

    def transform(self, train: bool) -> Transform:
        """Tokenise; words are dropped in training."""
        return Tokenise(self.tokenizer, self.word_dropout if train else 0.0)

    def preparation(self) -> TextPreparation:
        """The tokeniser."""
        return TextPreparation(self.tokenizer)

    def preparation_state(self) -> dict[str, str]:
        """The tokeniser."""
        return self.preparation().state()

    def restore_preparation(self, state: Mapping[str, str]) -> None:
        """Take over a checkpoint's tokeniser, whatever the training texts are now."""
        self._tokenizer = TextPreparation.restored(state).tokenizer

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise :class:`ConfigError` for an encoder of pictures, or one with too few words or places."""
        if not isinstance(encoder, TextEncoder):
            raise ConfigError(
                f"model.encoder is {type(encoder).__name__}, which reads no texts, and the data are texts; take BagOfWords, "
                "TextGRU, TextAttention or TextTransformer"
            )
        if self._tokenizer is None:
            return
        if encoder.vocabulary < self.tokenizer.size:
            raise ConfigError(
                f"model.encoder.init_args.vocabulary is {encoder.vocabulary}, and the tokenizer has {self.tokenizer.size} ids; "
                f"set it to at least that, or {KEY}.vocabulary to at most {encoder.vocabulary}"
            )
        if encoder.longest is not None and encoder.longest < self.tokenizer.max_length:
            raise ConfigError(
                f"model.encoder.init_args.max_length is {encoder.longest}, and the tokenizer gives up to "
                f"{self.tokenizer.max_length} words; set {KEY}.max_length to the same or less"
            )

    def take_inputs(self, inputs: Path, column: str | None, on_error: OnError) -> str:
        """Let ``predict`` be about the texts in a file: its lines, or a column of a table."""
        given = find_texts(inputs, column or self.column, on_error)
        self.to_predict = lambda: TextsToPredict(given, self.preparation())
        return given.note


def _texts(dataset: LabelledDataset) -> list[str]:
    if isinstance(dataset, SomeRows):
        whole = _texts(dataset.dataset)
        return [whole[row] for row in dataset.rows.tolist()]
    if not isinstance(dataset, TextDataset):
        raise TypeError(f"a data module of texts must give TextDatasets, not {type(dataset).__name__}")
    return list(dataset.texts)
