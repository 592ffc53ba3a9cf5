"""What data modules have in common whose rows are found in folders, and then treated like those of a manifest."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mtl_lightning.data.cache import ImageCache
from mtl_lightning.data.dataset import LabelledDataset
from mtl_lightning.data.manifest import ManifestDataModule
from mtl_lightning.data.splits import Split
from mtl_lightning.data.table import Table
from mtl_lightning.errors import ConfigError
from mtl_lightning.inputs import IMAGE
from mtl_lightning.tasks.base import Task


class ListedDataModule(ManifestDataModule):
    """A manifest that is made of folders.

    Args:
        root: folder that the pictures are in.
        what: what messages call the manifest.
        split: of the rows where folders say nothing; None is the default.
        on_error, verify, cache, kwargs: of :class:`~mtl_lightning.data.manifest.ManifestDataModule`.

    Raises:
        ConfigError: a split by what folders do not have.
    """

    def __init__(
        self,
        root: str,
        what: str,
        split: Split | None,
        on_error: Literal["raise", "skip"],
        verify: int,
        cache: ImageCache | None,
        **kwargs: Any,
    ) -> None:
        self.given = split if split is not None else Split()
        for key in ("column", "files", "group", "stratify"):
            if getattr(self.given, key) is not None:
                raise ConfigError(f"data.init_args.split.{key} is for manifests; {what} have no columns: leave it out")
        super().__init__(root, f"the {what}", IMAGE, None, self.given, on_error, verify, cache=cache, **kwargs)
        self._table: Table | None = None

    @abstractmethod
    def _list(self, tasks: Mapping[str, Task]) -> Table:
        """The rows; settles how they are split."""

    def datasets(self, tasks: Mapping[str, Task], splits: Sequence[str]) -> dict[str, LabelledDataset]:
        """List and check the pictures; raises :class:`DataError` for what is wrong, unless such pictures are to be skipped."""
        self._table = self._table or self._list(tasks)
        return super().datasets(tasks, splits)

    def examined(self, tasks: Mapping[str, Task]) -> dict[str, LabelledDataset]:
        """All pictures, the unreadable ones too."""
        self._table = self._table or self._list(tasks)
        return super().examined(tasks)

    def _read(self) -> Table:
        assert self._table is not None
        return self._table
