"""Pictures and half-filled label columns: a CSV or Parquet manifest as a data module."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchvision import tv_tensors

from mtl_lightning.checks import at_least
from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.data.cache import ImageCache, Kept, keep
from mtl_lightning.data.columns import Column, read_labels, resolve_column
from mtl_lightning.data.dataset import Examined, LabelledDataset
from mtl_lightning.data.faults import Faults
from mtl_lightning.data.files import image_mode, image_size, read_image
from mtl_lightning.data.labels import Labels, Size
from mtl_lightning.data.links import Links
from mtl_lightning.data.loader import ResumableLoader
from mtl_lightning.data.opening import MAX_PIXELS
from mtl_lightning.data.pictures import Pictures, find_rows
from mtl_lightning.data.rows import RowPictures
from mtl_lightning.data.splits import SPLITS, Split, assign
from mtl_lightning.data.table import Places, Table, Texts, join_tables, read_table
from mtl_lightning.data.verify import check_links, check_presence, check_repeats, check_rows, check_values
from mtl_lightning.errors import ConfigError, DataError
from mtl_lightning.inputs import IMAGE
from mtl_lightning.storage import writing
from mtl_lightning.tasks.base import Task

log = logging.getLogger(__name__)
BLACK = (224, 224)
"""Height and width of what stands in for a picture of which nothing is known."""


class ManifestDataset(LabelledDataset):
    """Some rows of a manifest.

    Args:
        name: of the split.
        rows: which rows of the manifest.
        pictures: the pictures of all rows.
        labels: per task the labels of all rows.
        places: where the rows came from.
        root: the folder that paths are relative to.
        channels: 1 or 3.
        black: where given, a row with a bad file becomes a black picture without labels, of this size if the picture's own
            is not known; where None, it raises :class:`DataError`.
        noted: what is known to be wrong with rows of the manifest, for :meth:`examine`.
        stopping: which rows of the manifest stop a run even where bad rows are skipped, for :meth:`examine`.
        max_pixels: what a picture may have.
    """

    def __init__(
        self,
        name: str,
        rows: np.ndarray,
        pictures: RowPictures,
        labels: Mapping[str, Labels],
        places: Places,
        root: str,
        channels: int,
        black: Size | None = None,
        noted: Mapping[int, list[str]] | None = None,
        stopping: np.ndarray | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = name
        self.rows = rows
        self.pictures = pictures.some(rows)
        self.ids = self.pictures.names
        self.labels = dict(labels)
        self.places = places
        self.root = root
        self.channels = channels
        self.black = black
        self.noted = noted or {}
        self.stopping = stopping
        self.max_pixels = max_pixels
        self.kept: Kept | None = None
        # Shared with the workers, so that each row is told once and all are counted.
        self._told = torch.zeros(len(rows) if black else 0, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def failed(self) -> int:
        """How many rows came as black pictures so far, in any of the workers."""
        return int(self._told.sum())

    def labelled(self, task: str) -> np.ndarray:
        """Bool [N]: which rows have a label of ``task``."""
        chosen: np.ndarray = self.labels[task].labelled[self.rows]
        return chosen

    def where(self, index: int) -> str:
        """File and line of a row, and its picture."""
        return f"{self.places.where(int(self.rows[index]))} ({self.ids[index]})"

    def targets(self, task: str, rows: Sequence[int]) -> Iterator[Tensor]:
        """Finished targets; opens the labels' files, and of pictures the headers alone where the label is a box."""
        labels, read = self.labels[task], self.pictures.of(task)
        for index in rows:
            try:
                size = image_size(self.root, read[index], self.max_pixels) if labels.needs_size else None
                target = labels.finished(labels.stored(int(self.rows[index]), size))
            except DataError as error:
                if self.black is None:
                    raise DataError(f"{self.where(index)}, task '{task}': {error}") from error
                continue
            yield target

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            sample = self._images(index)
            for task, labels in self.labels.items():
                if labels.labelled[self.rows[index]]:
                    sample[task] = self._label(index, task, labels, tuple(sample[self.pictures.read(task)].shape[-2:]))
        except DataError as error:
            if self.black is None:
                raise
            if not self._told[index]:
                self._told[index] = True
                log.warning("%s; a black picture without labels takes its place", error)
            return self._blank(index, self.black)
        return sample

    def faults(self, index: int, tasks: Mapping[str, Task]) -> list[str]:
        """All that is wrong with a row's files and with the labels in them, by decoding them."""
        return self.examine(index, tasks).problems

    def examine(self, index: int, tasks: Mapping[str, Task]) -> Examined:
        """Decode all files of a row and check its labels, whatever was wrong before."""
        row = int(self.rows[index])
        found = Examined(problems=list(self.noted.get(row, ())), stops=self.stopping is not None and bool(self.stopping[row]))
        if not self.ids[index]:
            return found
        sizes: dict[str, Size] = {}
        for name in self.pictures.given(index):
            try:
                sizes[name] = tuple(self._image(index, name).shape[-2:])
                found.mode = found.mode or image_mode(self.root, self.pictures.texts[name][index], self.max_pixels)
            except DataError as error:
                found.problems.append(str(error).removeprefix(f"{self.where(index)}: "))
        found.size = next(iter(sizes.values()), None)
        for task, labels in self.labels.items():
            size = sizes.get(self.pictures.read(task))
            if not labels.labelled[row] or (labels.needs_size and size is None):
                continue
            try:
                found.targets[task] = labels.finished(self._label(index, task, labels, size))
                tasks[task].check(found.targets[task], self.where(index))
            except DataError as error:
                found.problems.append(f"{self.ids[index]}{str(error).removeprefix(self.where(index))}")
        return found

    def _images(self, index: int) -> dict[str, Any]:
        images = {name: self._image(index, name) for name in self.pictures.given(index)}
        return {"id": self.ids[index], "size": tuple(next(iter(images.values())).shape[-2:]), **images}

    def _image(self, index: int, name: str) -> tv_tensors.Image:
        def decode() -> Tensor:
            image: Tensor = read_image(self.root, self.pictures.texts[name][index], self.channels, self.max_pixels)
            return image

        try:
            return tv_tensors.Image(decode() if self.kept is None else self.kept.read(self.pictures.place(name, index), decode))
        except DataError as error:
            raise DataError(f"{self.where(index)}: {error}") from error

    def _label(self, index: int, task: str, labels: Labels, size: Size | None) -> Tensor:
        try:
            return labels.stored(int(self.rows[index]), size)
        except DataError as error:
            raise DataError(f"{self.where(index)}, task '{task}': {error}") from error

    def _blank(self, index: int, size: Size) -> dict[str, Any]:
        with suppress(DataError):  # the size that was given must do where the picture's header is broken, too
            size = image_size(self.root, self.ids[index], self.max_pixels)
        picture = tv_tensors.Image(torch.zeros(self.channels, *size, dtype=torch.uint8))
        return {"id": self.ids[index], self.pictures.given(index)[0]: picture, "size": size}


class ManifestDataModule(MultiTaskDataModule):
    r"""Pictures listed in a CSV or Parquet file, a column (or a few) per label; an empty cell is a missing label.

    What a cell means is decided by the task that reads it: a class name (or index), a number, 0/1, or the path of a mask,
    depth map or map of normals as high and wide as its picture. All cells, the presence of all files and the content of up to
    ``verify`` rows are checked before training.

    Args:
        root: the folder that holds the files; all paths are relative to it and stay below it, with ``/`` or ``\``.
        manifest: the CSV (UTF-8, comma separated, with a header) or ``.parquet`` file; null where ``split.files`` names them.
        image: the column of the pictures' paths.
        inputs: several pictures a row, in place of ``image``: input → column of the paths. An empty cell is a missing picture; a
            row has one at least, and no label of a task whose picture (``model.inputs``) it lacks.
        columns: task → column, list of columns, or a :class:`~mtl_lightning.data.columns.Column`; a task that is not named
            here takes the column of its own name.
        split: see :class:`~mtl_lightning.data.splits.Split`.
        on_error: ``raise`` stops at bad rows; ``skip`` leaves out the rows that the check before training finds bad, lists
            them (all in ``left_out_*.txt`` in the run's folder), and makes a row whose file fails later a black picture without
            labels, with a warning that names it.
        verify: how many rows of the splits in use are decoded in the check, drawn at random if there are more; 0 for none.
        duplicates: ``allow`` lets several rows of one split have the same picture.
        cache: keeps decoded pictures of the training and the validation split, see
            :class:`~mtl_lightning.data.cache.ImageCache`; None decodes them each time. Both give the same pictures.
        follow_links: whether symbolic links may lead out of ``root``, where otherwise such a row is bad; within it they always
            may, and ``root`` may itself be a link.
        **kwargs: of :class:`~mtl_lightning.data.base.MultiTaskDataModule`.

    Raises:
        ConfigError: settings that contradict each other.
    """

    def __init__(
        self,
        root: str,
        manifest: str | None = None,
        image: str = "image",
        columns: dict[str, str | list[str] | Column] | None = None,
        split: Split | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        verify: int = 2000,
        duplicates: Literal["error", "allow"] = "error",
        cache: ImageCache | None = None,
        inputs: dict[str, str] | None = None,
        follow_links: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if inputs is not None and (not inputs or image != IMAGE):
            raise ConfigError("data.init_args: give image, the column of one picture a row, or inputs, the columns of several")
        self.root = os.path.expanduser(root)
        self.split = split if split is not None else Split()
        self.split.check()
        self.manifests = self.split.manifests(manifest)
        at_least("data.init_args.verify", verify, 0)
        self.sources = {IMAGE: image} if inputs is None else dict(inputs)
        self.inputs = list(self.sources)
        self.image = " or ".join(self.sources.values())
        self.columns = dict(columns or {})
        self.on_error = on_error
        self.verify = verify
        self.duplicates = duplicates
        self.cache = cache
        self.follow_links = follow_links
        if cache is not None:
            cache.check()

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        """Read and check the manifest; raises :class:`DataError` listing the bad rows, unless they are to be skipped."""
        self.check_names("data.init_args.columns", self.columns)
        table = self._read()
        codes = assign(self.split, table, self.image)
        places, pictures = table.places, self._pictures(table, tasks)
        repeats = Faults(places, len(table))
        check_repeats(list(pictures.texts.values()), codes, SPLITS, self.duplicates == "allow", repeats)
        if repeats.bad.any():
            raise DataError(f"pictures that are there more than once, {repeats.report()}")
        faults = Faults(places, len(table))
        labels = self._labels(tasks, table, codes, pictures, faults)
        links = self._links()
        for what, texts in self._paths(pictures, labels):
            check_presence(links, self.root, what, texts, faults)
        check_values(tasks, labels, pictures.names, faults)

        def part(name: str, rows: np.ndarray) -> ManifestDataset:
            rest = (labels, places, self.root, self.channels, self._black())
            return ManifestDataset(name, rows, pictures, *rest, max_pixels=self.max_pixels)

        wanted = np.isin(codes, [SPLITS.index(split) for split in splits])
        drawn = part("checked", self._drawn(np.flatnonzero(wanted & ~faults.bad)))
        check_rows(drawn.rows, lambda index: drawn.faults(index, tasks), faults)
        self._settle(faults, wanted, "_".join(splits))
        return {
            split: part(split, np.flatnonzero((codes == SPLITS.index(split)) & ~faults.bad))
            for split in splits
            if (codes == SPLITS.index(split)).any()
        }

    def examined(self, tasks: Mapping[str, Task]) -> dict[str, LabelledDataset]:
        """All rows, the bad ones too; those whose split has none of the three names are a split of their own."""
        self.check_names("data.init_args.columns", self.columns)
        table = self._read()
        faults = Faults(table.places, len(table), every=True)
        codes, pictures = assign(self.split, table, self.image, faults), self._pictures(table, tasks)
        names = (*SPLITS, "no split")
        check_repeats(list(pictures.texts.values()), codes, names, self.duplicates == "allow", faults)
        stopping = faults.bad.copy()
        labels = self._labels(tasks, table, codes, pictures, faults)
        links = self._links()
        for what, texts in self._paths(pictures, labels):
            check_links(links, self.root, what, texts, faults)
        parts = {name: np.flatnonzero(codes == code) for name, code in zip(names, (0, 1, 2, -1), strict=True)}
        rest = (
            pictures,
            labels,
            table.places,
            self.root,
            self.channels,
            self._black(),
            faults.by_row(),
            stopping,
            self.max_pixels,
        )
        return {name: ManifestDataset(name, rows, *rest) for name, rows in parts.items() if len(rows)}

    def find_pictures(self, inputs: Path, column: str | None) -> Pictures:
        """The pictures that ``--inputs`` of ``predict`` means; of several inputs, the rows of a CSV."""
        if self.inputs == [IMAGE]:
            return super().find_pictures(inputs, column)
        if column is not None:
            raise ConfigError(
                f"--column {column}: the run reads several pictures a row, whose columns data.init_args.inputs names"
            )
        return find_rows(inputs, self.sources)

    def teardown(self, stage: str) -> None:
        """Say how many rows failed in training, where that does not end a run."""
        failed = {name: part.failed for name, part in self.splits.items() if isinstance(part, ManifestDataset) and part.failed}
        if failed:
            rows = " and ".join(f"{count} {name} row{'s' * (count > 1)}" for name, count in failed.items())
            rank_zero_info(f"{rows} could not be read and came as black pictures without labels (on_error: skip); named above")

    def _links(self) -> Links:
        return Links([self.root], self.follow_links)

    def _paths(self, pictures: RowPictures, labels: Mapping[str, Labels]) -> Iterator[tuple[str, Texts]]:
        """All columns of files, and what messages call them."""
        for name, column in self.sources.items():
            yield f"column '{column}'", pictures.texts[name]
        for name, task_labels in labels.items():
            if task_labels.texts is not None:
                yield f"task '{name}'", task_labels.texts

    def _labels(
        self, tasks: Mapping[str, Task], table: Table, codes: np.ndarray, pictures: RowPictures, faults: Faults
    ) -> dict[str, Labels]:
        faults.add_all(np.flatnonzero(~pictures.names.filled), lambda _: f"column '{self.image}': there is no picture")
        labels = {}
        for name, task in tasks.items():
            task.name = name
            column = resolve_column(task, self.columns.get(name), table)
            if task.names is None and task.kind == "class":
                self.found.add(name)
            labels[name] = read_labels(task, column, table, self.root, codes, faults, name in self.found, self.max_pixels)
            lacking = labels[name].labelled & pictures.names.filled & ~pictures.of(name).filled
            faults.add_all(np.flatnonzero(lacking), self._lacking(name, pictures.read(name)))
        return labels

    def _lacking(self, task: str, read: str) -> Callable[[int], str]:
        words = (
            f"task '{task}' has a label, but column '{self.sources[read]}' is empty, which has the input {read} that the task "
            f"reads (model.inputs.{task})"
        )
        return lambda _: words

    def _pictures(self, table: Table, tasks: Mapping[str, Task]) -> RowPictures:
        read = {task: name for name, readers in self.check_inputs(tasks).items() for task in readers}
        texts = {name: table.texts(column) for name, column in self.sources.items()}
        return RowPictures(texts, table.texts(self.image), read)

    def _loader(self, split: str, train: bool, further: int = 0) -> ResumableLoader:
        dataset = self.splits[split]
        # What is read once, outside of training, is not worth keeping.
        training = train or (self.trainer is not None and self.trainer.state.fn == "fit" and split == "val")
        if self.cache is not None and training and isinstance(dataset, ManifestDataset) and dataset.kept is None:
            processes = self.trainer.num_devices if self.trainer is not None else 1
            used = [part.kept.plan.nbytes for part in self.splits.values() if isinstance(part, ManifestDataset) and part.kept]
            dataset.kept = keep(
                self.cache, split, processes, self.root, dataset.pictures.files, self.channels, sum(used), self.max_pixels
            )
        return super()._loader(split, train, further)

    def _read(self) -> Table:
        tables = [read_table(Path(self.root) / name, name) for name in self.manifests]
        table = join_tables(tables) if len(tables) > 1 else tables[0]
        table.need(list(self.sources.values()), "data.init_args." + ("image" if self.inputs == [IMAGE] else "inputs"))
        return table.with_first(list(self.sources.values()), self.image)

    def _black(self) -> Size | None:
        if self.on_error == "raise":
            return None
        size = self.image_size if self.image_size is not None else BLACK
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def _drawn(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) <= self.verify:
            return rows
        return np.sort(np.random.default_rng(self.split.seed).choice(rows, self.verify, replace=False))

    def _settle(self, faults: Faults, wanted: np.ndarray, splits: str) -> None:
        if not faults.bad.any():
            return
        if self.on_error == "raise":
            raise DataError(f"{faults.report()}\nMend the rows, or set data.init_args.on_error to skip to leave them out")
        if (faults.bad & wanted).any():
            rank_zero_info(f"left out {faults.report(wanted)}")
            if self.trainer is not None and self.trainer.is_global_zero:
                listing = Path(self.trainer.default_root_dir) / f"left_out_{splits}.txt"
                with writing(listing, "make room, or mend the rows that are left out"):
                    listing.parent.mkdir(parents=True, exist_ok=True)
                    listing.write_text(faults.report(wanted, shown=None) + "\n", encoding="utf-8")
                rank_zero_info(f"all of them are in {listing}")
