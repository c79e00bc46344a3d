"""What the backends whose store is one file have in common: its path, and a copy of it before an upgrade."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recycledb.errors import StoreError
from recycledb.store.backup import copy_beside

if TYPE_CHECKING:
    from recycledb.store.backend import Backend


class InFile:
    """A store in one file at `path`."""

    name: str
    path: Path

    @property
    def label(self) -> str:
        """The path, as the user gave it."""
        return str(self.path)

    @property
    def title(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def folder(self) -> Path | None:
        """The folder of the file, in which temporary files of its size can be written."""
        return self.path.parent

    @property
    def identity(self) -> str:
        """The path without links, as text."""
        return str(self.path.resolve())

    def exists(self) -> bool:
        """Return whether there is a file; StoreError if the path cannot be one."""
        try:
            if self.path.is_dir():
                example = f"{self.name}:///{self.path / 'recycle.db'}"
                raise StoreError(f"{self.path} is a folder; a store is a file, for example {example}")
            return self.path.exists()
        except OSError as error:  # no permission for a folder, a name that is too long
            raise StoreError(f"{self.path} cannot be opened: {error.strerror or error}") from error

    def require_place(self) -> None:
        """Raise StoreError if no file can be created at the path."""
        if options := re.search(r"\?\w+=.*", self.path.name):  # an existing file may have such a name, but none is created
            raise StoreError(f"there is no store at {self.path}: a store's URL takes no options; leave out {options[0]}")
        if not self.path.parent.is_dir():
            raise StoreError(
                f"there is no folder {self.path.parent} for the store {self.path.name}; create it first"
            )

    def copy_before_upgrade(self: Any, revision: str) -> str | None:
        """Copy the file to a new one beside it and return that one's path."""
        backend: Backend = self
        return str(copy_beside(backend, self.path, revision))
