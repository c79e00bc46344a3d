"""Write files for the user. Everything that recycledb writes besides its store is written here.

Invariant: a file is written completely or not at all. It is written to a temporary file in the same folder, synced, and renamed; if
anything goes wrong before the rename (an error, a full disk, a kill), the previous file is unchanged.

- Anything but a regular file (a terminal, /dev/null, a named pipe, the /dev/fd/63 of a process substitution) is written to directly
  and never replaced. /dev/stdout and the like mean the descriptor that they name, so `>> log` appends.
- A symbolic link is followed: its target is replaced, or created if it does not exist.
- An existing file must be writable itself. It keeps its mode and, if this process may set them, its owner and group; its extended
  attributes and other hard links are not preserved. A new file has the mode 0666 less the umask.
- The temporary name is random and opened exclusively. Its writer holds a lock on it, so the next writer in that folder can tell which
  temporary files a killed process left behind, and removes them.

This module refuses to write into a folder in which it cannot create files: writing in place, a full disk or a kill would destroy the
previous file.
"""

import errno
import fcntl
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from recycledb.errors import WriteError

BUFFER = 1 << 16
LINKS = 40  # as many as Linux follows
ABANDONED_AFTER_S = 86_400  # without file locks, a temporary file this old counts as left by a killed writer

_TEMPORARY = re.compile(r"\.recycledb-[0-9a-f]{32}\.tmp")
_DESCRIPTOR = re.compile(r"(?:/proc/(\d+)(?:/task/\d+)?/fd|/dev/fd)/(\d+)")
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing bytes; the file is replaced when the block ends without an error.

    Raises WriteError, also from the file's own `write`: one line with `path` and the system's reason.
    """
    with _as_write_errors(path):
        place = _Place(path)
    raw = place.raw
    file = io.BufferedWriter(raw, BUFFER)
    try:
        yield file
        with _as_write_errors(path):
            file.flush()
            place.commit()
    finally:
        raw.abandon()
        file.close()
        place.clear()


@contextmanager
def writing_text(path: Path) -> Iterator[TextIO]:
    """Open `path` for writing text, as `writing` does: UTF-8, newlines unchanged."""
    with writing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            yield text
            text.detach()  # flushes, and leaves the file open
        except UnicodeEncodeError as error:
            raise WriteError(
                f"{path} cannot be written: the text has a lone surrogate, which UTF-8 cannot encode"
            ) from error


def write_text(path: Path, text: str) -> None:
    """Write `path` with this text as its content."""
    with writing_text(path) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `path` with these bytes as its content."""
    with writing(path) as file:
        file.write(content)


def make_folder(path: Path) -> None:
    """Create a folder and its parents where they are missing."""
    with _as_write_errors(path, "created"):
        path.mkdir(parents=True, exist_ok=True)


def is_stdout(path: Path) -> bool:
    """Return whether a path means this process's standard output, as /dev/stdout and /dev/fd/1 do."""
    try:
        return _own_descriptor(_followed(path)) == 1
    except OSError:  # an endless chain of links, which writing reports
        return False


# --- the target of a write ------------------------------------------------------------------------


class _Descriptor(io.RawIOBase):
    """An open file descriptor whose errors name the file; once abandoned, it ignores further writes."""

    def __init__(self, path: Path, number: int) -> None:
        self._path = path
        self._number = number
        self._abandoned = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def write(self, data: Any, /) -> int:
        if self._abandoned:
            return len(data)
        with _as_write_errors(self._path):
            return os.write(self._number, data)

    def abandon(self) -> None:
        """Drop what is still buffered, so that closing a failed file writes nothing more."""
        self._abandoned = True

    def close(self) -> None:
        if not self.closed:
            os.close(self._number)
        super().close()


class _Place:
    """The path to be written, and the descriptor that its bytes are written to until the rename."""

    def __init__(self, path: Path) -> None:
        self._temporary: Path | None = None
        here = _followed(path)
        own = _own_descriptor(here)
        if own is not None:
            self.raw = _Descriptor(path, os.dup(own))
            return
        existing = _opened(path)
        if existing is not None and not stat.S_ISREG(os.fstat(existing).st_mode):
            self.raw = _Descriptor(path, existing)
            return
        before = None
        if existing is not None:
            before = os.fstat(existing)
            os.close(existing)
            _require_same(path, here, before)
        self._target = here
        _clear_leftovers(here.parent)
        self._temporary, number = _made_beside(here, before)
        self.raw = _Descriptor(path, number)

    def commit(self) -> None:
        """Rename the file to its path, durably."""
        if self._temporary is None:
            return
        os.fsync(self.raw.fileno())
        self._temporary.replace(self._target)
        self._temporary = None
        _sync_folder(self._target.parent)

    def clear(self) -> None:
        """Remove the temporary file if it was not renamed."""
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


@contextmanager
def _as_write_errors(path: Path, done: str = "written") -> Iterator[None]:
    try:
        yield
    except IsADirectoryError as error:
        raise WriteError(f"{path} is a directory: name a file in it") from error
    except OSError as error:
        raise WriteError(f"{path} cannot be {done}: {error.strerror or error}") from error


def _followed(path: Path) -> Path:
    """Return the path with all links followed, up to a descriptor of this process."""
    for _ in range(LINKS):
        here = Path(os.path.realpath(path.parent)) / path.name
        if _own_descriptor(here) is not None or not here.is_symlink():
            return here
        path = here.parent / here.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _own_descriptor(here: Path) -> int | None:
    """Return the descriptor of this process that a path means, as /dev/stdout means 1."""
    found = _DESCRIPTOR.fullmatch(str(here))
    return int(found[2]) if found and found[1] in (None, str(os.getpid())) else None


def _opened(path: Path) -> int | None:
    """Open `path` for writing without changing it, by the path as given, so that the system checks the permissions of its links too."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        return None


def _require_same(path: Path, here: Path, before: os.stat_result) -> None:
    if not os.path.samestat(here.lstat(), before):
        raise WriteError(f"{path} cannot be written: another process changed it just now; try again")


def _made_beside(target: Path, before: os.stat_result | None) -> tuple[Path, int]:
    """Create a temporary file beside `target`, locked, with the target's mode and owner; return its path and descriptor."""
    while True:
        path = target.with_name(f".recycledb-{secrets.token_hex(16)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            number = os.open(path, flags, 0o666 if before is None else 0o600)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise OSError(
                error.errno, f"no file can be created in its folder {target.parent} ({error.strerror})"
            ) from error
        _lock(number)
        if os.fstat(number).st_nlink:  # else another writer removed it as a leftover before it was locked
            break
        os.close(number)
    try:
        if before is not None:
            _keep_owner_and_mode(number, before)
    except BaseException:
        os.close(number)
        path.unlink()
        raise
    return path, number


def _keep_owner_and_mode(number: int, before: os.stat_result) -> None:
    mode = stat.S_IMODE(before.st_mode)
    new = os.fstat(number)
    if new.st_gid != before.st_gid:
        with suppress(PermissionError):
            os.fchown(number, -1, before.st_gid)
    if new.st_uid != before.st_uid:
        with suppress(PermissionError):
            os.fchown(number, before.st_uid, -1)
    now = os.fstat(number)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        mode &= 0o777  # set-user-id and set-group-id applied to the old owner
    os.fchmod(number, mode)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. The file is complete already, so a folder that cannot be opened or synced is not an error."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


# --- leftovers of killed writers ------------------------------------------------------------------


def _lock(number: int) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _clear_leftovers(folder: Path) -> None:
    """Remove this user's temporary files whose writer is dead; those that cannot be checked stay."""
    with suppress(OSError), os.scandir(folder) as entries:
        for path in [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]:
            with suppress(OSError):
                _clear_if_left(path)


def _clear_if_left(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return
    number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if _is_abandoned(number):
            path.unlink()
    finally:
        os.close(number)


def _is_abandoned(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in _NO_LOCKS and time.time() - os.fstat(number).st_mtime > ABANDONED_AFTER_S
    return True
