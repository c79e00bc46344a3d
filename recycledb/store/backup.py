"""The backup of a store before its schema is upgraded.

Invariant: the backup gets its name only when it is complete and synced to disk, with the store's mode and owner; a run that is killed
leaves at most a file under another name, which the next run removes.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from recycledb.errors import StoreError
from recycledb.store.backend import Backend

PARTIAL = ".partial"


def copy_beside(backend: Backend, path: Path, revision: str) -> Path:
    """Copy a store to a new file in the same folder, named by revision and time, and return its path.

    Raises StoreError, and leaves no file, if there is not enough space or the folder cannot be written.
    """
    try:
        _remove_leftovers(path)
        with _unfinished(path) as (unfinished, descriptor):
            backend.backup(unfinished)
            _dress(descriptor, path)
            os.fsync(descriptor)
            target = _unused(path, revision)
            unfinished.rename(target)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"cannot back up {path} ({error.strerror or error}), so nothing was changed; the backup needs as much free space in the "
            "same folder as the store takes"
        ) from error
    return target


def copy_to(backend: Backend, path: Path, target: Path) -> None:
    """Copy a store in the file `path` to a new file `target`, in its current state, also while others write.

    Raises StoreError, and leaves no file, if there is a file already, not enough space, or no permission.
    """
    if target.exists():
        raise StoreError(f"{target} already exists; name a file that does not exist")
    try:
        _remove_leftovers(target)
        with _unfinished(target) as (unfinished, descriptor):
            backend.backup(unfinished)
            _dress(descriptor, path)
            os.fsync(descriptor)
            unfinished.rename(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error


@contextmanager
def _unfinished(path: Path) -> Iterator[tuple[Path, int]]:
    """Create a new file and hold a lock on it while it is filled; remove it if that fails."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield beside, descriptor
    finally:
        beside.unlink(missing_ok=True)
        os.close(descriptor)


def _dress(descriptor: int, path: Path) -> None:
    """Give the backup the mode of the store and, as far as this user may, its owner."""
    like = path.stat()
    with suppress(PermissionError):
        os.fchown(descriptor, like.st_uid, like.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(like.st_mode))


def _unused(path: Path, revision: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    names = (f"{path.name}.{revision}-{stamp}{more}.bak" for more in ("", *(f"-{i}" for i in range(2, 10_000))))
    return next(target for target in map(path.with_name, names) if not target.exists())


def _remove_leftovers(path: Path) -> None:
    """Remove the files of killed runs: those that no process holds a lock on."""
    for name in os.listdir(path.parent):  # noqa: PTH208 — glob would interpret special characters in the store's name
        if name.startswith(f".{path.name}.") and name.endswith(PARTIAL):
            with suppress(OSError), path.with_name(name).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.with_name(name).unlink()


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
