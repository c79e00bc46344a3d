"""Open a SQLite file for reading, also without write permission.

In WAL mode readers write too: they record their locks in a file next to the store (`-shm`). A store in a folder without write
permission, or on a full disk, is therefore a special case:

- If `-wal` and `-shm` exist and can be read, another process may be writing: SQLite reads with their help (mode=ro).
- If `-wal` is missing or empty, no process has the store open, and the file alone is the whole store: it is read without locks
  (immutable). If a process writes it in the meantime, the file's modification time or size changes, and the read fails with an error.
- If `-wal` holds rows and `-shm` is missing, the file cannot be read correctly: that is an error.

Without write permission, a file is never opened in a way that creates files next to it: they would belong to this user and lock out
the store's owner.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from recycledb.errors import StoreError

IMMUTABLE = "mode=ro&immutable=1"
NO_ROOM_BYTES = 65_536  # with less, SQLite cannot make its -shm
WAL_MARK = b"\x02\x02"  # bytes 18 and 19 of the file


class Reading:
    """Opens one file for reading, with `library`, a DB-API module."""

    def __init__(self, path: Path, library: Any, timeout_s: float) -> None:
        self.path, self.library, self.timeout_s = path, library, timeout_s
        self.wal, self.shm = (path.with_name(f"{path.name}-{suffix}") for suffix in ("wal", "shm"))
        self._immutable = False
        self._wal_mode: bool | None = None

    def connect(self, *, read_only: bool = False) -> Any:
        """Open a connection; with `read_only`, one on which SQLite itself rejects writes."""
        how = self._how()
        self._immutable = how == IMMUTABLE
        connection = self._open(how or ("mode=ro" if read_only else ""))
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        except self.library.OperationalError:
            if how or _size(self.wal) or not no_room(self.path):
                connection.close()
                raise
            connection.close()
            self._immutable = True
            return self._open(IMMUTABLE)
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self, how: str) -> Any:
        name = os.fsencode(self.path.absolute())
        uri = f"file:{'//' if name.startswith(b'//') else ''}{quote(name)}?{how}"
        options = {"check_same_thread": False, "timeout": self.timeout_s, "isolation_level": None}
        return self.library.connect(uri, uri=True, **options)

    def _how(self) -> str:
        if not self.path.exists() or may_write(self.path):
            # A log that a killed process left stays as it is until the next write: closing the last connection would checkpoint it.
            return "mode=ro" if _size(self.wal) else ""
        if not self._is_wal():
            return "mode=ro"
        if os.access(self.wal, os.R_OK) and os.access(self.shm, os.R_OK):
            return "mode=ro"
        if _size(self.wal):
            raise StoreError(
                f"{self.path} cannot be read: {self.wal.name} next to it holds rows that are not in the file yet, and moving them there "
                "needs write permission; have a user with that run `recycledb status`, or copy both files to a folder of your own"
            )
        return IMMUTABLE

    def _is_wal(self) -> bool:
        # Read once, before any connection is open: closing the file drops this process's POSIX locks on it.
        if self._wal_mode is None:
            try:
                with self.path.open("rb") as file:
                    self._wal_mode = file.read(20)[18:] == WAL_MARK
            except OSError as error:
                raise StoreError(f"cannot read {self.path}: {error.strerror}") from error
        return self._wal_mode

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Raise StoreError if the file is read without locks in this block and another process writes it in the meantime."""
        before = self._stamp()
        try:
            yield
        except Exception as error:  # pages of two states may have been read, which can cause any error
            self._refuse_unless(before, error)
            raise
        self._refuse_unless(before, None)

    def _refuse_unless(self, before: object, cause: Exception | None) -> None:
        if self._immutable and self._stamp() != before:
            raise StoreError(
                f"{self.path} was changed while it was read without locks; run the same command again"
            ) from cause

    def _stamp(self) -> object:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, _size(self.wal)


def may_write(path: Path) -> bool:
    """Return whether this user may write a database: its file, and the files that SQLite or DuckDB create next to it."""
    return os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK | os.X_OK)


def no_room(path: Path) -> bool:
    """Return whether the disk is full, or nearly full."""
    try:
        return shutil.disk_usage(path.absolute().parent).free < NO_ROOM_BYTES
    except OSError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
