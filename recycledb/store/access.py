"""How a SQLite file is opened for reading, also by one who may not write it.

In WAL mode a reader writes, too: it notes what it reads in a file beside the store (`-shm`), so a store in a folder that may not be
written, or on a full disk, needs care.

- Where `-wal` and `-shm` lie there and can be read, somebody may be writing: SQLite reads along with them (mode=ro).
- Where `-wal` is missing or empty, nobody has the store open, and the file alone is the whole store: it is read without any lock
  (immutable). Should a writer come meanwhile, the file's time and size tell, and what was read is refused.
- Where `-wal` holds rows and `-shm` is missing, nothing that is read could be trusted: that is an error.

A file that may not be written is never opened in a way that makes files beside it: they would be this user's, and keep its owner out.
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
    """The ways to open one file for reading; `library` is the DB-API module by which that is done."""

    def __init__(self, path: Path, library: Any, timeout_s: float) -> None:
        self.path, self.library, self.timeout_s = path, library, timeout_s
        self.wal, self.shm = (path.with_name(f"{path.name}-{suffix}") for suffix in ("wal", "shm"))
        self._immutable = False
        self._wal_mode: bool | None = None

    def connect(self, *, read_only: bool = False) -> Any:
        """Open a connection; with `read_only`, one on which SQLite itself lets nothing be written."""
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
            # A log that is left there stays as it is until somebody writes: the last to close would else work it into the file.
            return "mode=ro" if _size(self.wal) else ""
        if not self._is_wal():
            return "mode=ro"
        if os.access(self.wal, os.R_OK) and os.access(self.shm, os.R_OK):
            return "mode=ro"
        if _size(self.wal):
            raise StoreError(
                f"{self.path} cannot be read: {self.wal.name} beside it holds rows that are not in it yet, and only one who may "
                "write there can bring them in; let them run `recycledb status`, or copy both files to a folder of your own"
            )
        return IMMUTABLE

    def _is_wal(self) -> bool:
        # Read once, before any connection is open: closing the file drops the locks that this process has on it.
        if self._wal_mode is None:
            try:
                with self.path.open("rb") as file:
                    self._wal_mode = file.read(20)[18:] == WAL_MARK
            except OSError as error:
                raise StoreError(f"cannot read {self.path}: {error.strerror}") from error
        return self._wal_mode

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Refuse what is read in this block where it was read without locks, and a writer came meanwhile."""
        before = self._stamp()
        try:
            yield
        except Exception as error:  # whatever it was: pages of two states may have been read, so this is why
            self._refuse_unless(before, error)
            raise
        self._refuse_unless(before, None)

    def _refuse_unless(self, before: object, cause: Exception | None) -> None:
        if self._immutable and self._stamp() != before:
            raise StoreError(
                f"{self.path} was written while it was read without locks; run the same command again"
            ) from cause

    def _stamp(self) -> object:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, _size(self.wal)


def may_write(path: Path) -> bool:
    """Say whether this user may write a database: its file, and the files that its library makes beside it."""
    return os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK | os.X_OK)


def no_room(path: Path) -> bool:
    """Say whether the disk is full, or nearly so."""
    try:
        return shutil.disk_usage(path.absolute().parent).free < NO_ROOM_BYTES
    except OSError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
