"""What the backends whose store is one file have in common: its path, and a copy of it before an upgrade."""

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from recycledb.errors import StoreError
from recycledb.store.backup import copy_beside, copy_to

if TYPE_CHECKING:
    from recycledb.store.backend import Backend


class InFile:
    """A store in one file at `path`."""

    name: str
    path: Path
    writer: Engine
    is_server = False
    wait_s = 0.0

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

    def begin(self, *, locked: bool) -> AbstractContextManager[Connection]:
        """Open a write transaction; a file has one writer at a time."""
        return self.writer.begin()

    def is_transient(self, error: Exception) -> bool:
        """Return False: the databases wait for locks by themselves."""
        return False

    def grants(self, role: str) -> list[str]:
        """Return no statements: files have permissions."""
        return []

    def analyze(self) -> None:
        """Do nothing: the statements are written so that SQLite and DuckDB need no statistics."""

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
        if options := re.search(
            r"\?\w+=.*", self.path.name
        ):  # an existing file may have such a name, but none is created
            raise StoreError(
                f"there is no store at {self.path}: a store's URL takes no options; leave out {options[0]}"
            )
        if not self.path.parent.is_dir():
            raise StoreError(f"there is no folder {self.path.parent} for the store {self.path.name}; create it first")

    def save(self: Any, target: Path) -> str:
        """Copy the file, in a consistent state, to a new one; it is a store itself."""
        copy_to(self, self.path, target)
        return f"it is a store: recycledb --store {self.name}:///{target}"

    def copy_before_upgrade(self: Any, revision: str) -> Path | None:
        """Copy the file to a new one beside it and return that one's path."""
        backend: Backend = self
        return copy_beside(backend, self.path, revision)
