"""Symbolic links: followed within the data module's root, refused where they lead out of it, unless that is wanted."""

import os
from collections.abc import Sequence

from mtl_lightning.errors import DataError


class Links:
    """Whether what a data module finds in its folders may be somewhere else.

    Args:
        roots: the folders that files belong below; each may itself be a link.
        follow: whether links may lead anywhere.
    """

    def __init__(self, roots: Sequence[str], follow: bool) -> None:
        self.follow = follow
        self._roots = [os.path.realpath(root) for root in roots]

    def check(self, path: str, text: str) -> None:
        """Raise :class:`DataError` where a path leads out of the roots.

        Args:
            path: of a file or folder.
            text: what messages call it.
        """
        if self.follow:
            return
        real = os.path.realpath(path)
        if not any(real == root or real.startswith(os.path.join(root, "")) for root in self._roots):
            raise DataError(
                f"{text} leads out of the data module's root through a symbolic link, to {real}; bring it there, or set "
                "data.init_args.follow_links to true if that is meant"
            )
