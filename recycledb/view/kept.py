"""What was read from the store, kept in the user's cache folder, so that the pages are there at once when they are opened again.

Invariant: a file is used only if the store has the same rows as when it was written (`store/fingerprint.py`), at the same place, and the
same code would write it. It is derived: it can be deleted at any time, and one that cannot be used or written changes nothing but the
time until the first page. It is complete or not there, and only this user can read it.
"""

import hashlib
import io
import json
import os
import platform
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from recycledb import methods
from recycledb.errors import WriteError
from recycledb.files import writing
from recycledb.store import Store
from recycledb.store.fingerprint import fingerprint
from recycledb.view.columns import Column, Snapshot, column_key, version

PROOF = "proof"
UNUSED_S = 60 * 86_400.0  # after which a file is removed
Arrays = Mapping[str, npt.NDArray[Any]]


def cache_folder() -> Path:
    """Return the user's cache folder: $XDG_CACHE_HOME/recycledb, else ~/.cache/recycledb."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recycledb"


def cache_file(store: Store, name: str, suffix: str, folder: Path | None = None) -> Path:
    """Return the path of a derived file of a store."""
    where = hashlib.sha256(store.backend.identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return (folder or cache_folder()) / f"{name}-{where}{suffix}"


def create(path: Path) -> None:
    """Create a file that only this user can read, unless it exists."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


@cache
def code() -> str:
    """Return the hash of what decides what is read and how it is shown: the code of these packages, and the methods that are installed."""
    found = hashlib.sha256(f"{np.__version__} {platform.python_version()}".encode())
    for package in ("recycledb.view", "recycledb.reporting"):
        for each in sorted(files(package).iterdir(), key=lambda each: each.name):
            if each.name.endswith(".py"):
                found.update(each.read_bytes())
    found.update(repr([(kind.name, kind.scored) for kind in methods.kinds().values()]).encode())
    return found.hexdigest()


class Kept:
    """A derived file of one store: named arrays."""

    def __init__(self, store: Store, name: str, folder: Path | None = None) -> None:
        self.store = store
        self.path = cache_file(store, name, ".npz", folder)

    def save(self, state: str, arrays: Arrays) -> None:
        """Write the file; `state` is the store's fingerprint when the arrays were read."""
        packed = io.BytesIO()
        named: Any = {PROOF: in_bytes(_proof(state)), **arrays}
        np.savez(packed, **named)
        with suppress(OSError, WriteError):
            self._clear()
            create(self.path)
            with writing(self.path) as file:
                file.write(packed.getbuffer())

    def load(self) -> Arrays | None:
        """Return the arrays, None if there is no valid file."""
        if not self.path.exists():
            return None
        proof = _proof(_state(self.store))
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                if from_bytes(found[PROOF]) != proof:
                    return None
                os.utime(self.path)  # it is in use: see `_clear`
                return {name: found[name] for name in found.files}
        except Exception:
            return None

    def _clear(self) -> None:
        """Remove the files of stores that were not looked at for long; most of them are gone."""
        for each in self.path.parent.glob("*.npz"):
            if each != self.path and time.time() - each.stat().st_mtime > UNUSED_S:
                each.unlink(missing_ok=True)


_states: WeakKeyDictionary[Store, tuple[tuple[int, ...], str]] = (
    WeakKeyDictionary()
)  # fingerprints, with the version each is of
_one_at_a_time = threading.Lock()


def _state(store: Store) -> str:
    """Return the store's fingerprint. Several files are read at the same time when the pages start: it is computed once for them."""
    with _one_at_a_time:
        now = version(store)
        at, found = _states.get(store, ((), ""))
        if at != now:
            with store.read() as conn:
                found = fingerprint(conn)
            _states[store] = now, found
        return found


def _proof(state: str) -> str:
    return f"{code()} {state}"


def in_bytes(value: Any) -> npt.NDArray[np.uint8]:
    """Return a value as JSON in an array."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_bytes(content: npt.NDArray[Any]) -> Any:
    """Return the value of `in_bytes`."""
    return json.loads(content.tobytes())


def pack(snapshot: Snapshot) -> Arrays:
    """Return a snapshot as arrays."""
    columns, count = list(snapshot.columns.values()), len(snapshot.ids)
    flags = [flags for of_group in snapshot.flags.values() for flags in of_group.values()]
    return {
        "columns": in_bytes([[each.measure, each.model, each.kind, each.teacher] for each in columns]),
        "labels": in_bytes([[group, list(of_group)] for group, of_group in snapshot.flags.items()]),
        "ids": in_bytes(snapshot.ids),
        "values": np.array([each.values for each in columns], np.float64).reshape(len(columns), count),
        "flags": np.packbits(np.array(flags, bool).reshape(len(flags), count), axis=1),
    }


def unpack(arrays: Arrays, at: tuple[int, ...]) -> Snapshot:
    """Return the snapshot of `pack`; `at` is the store's version."""
    ids = from_bytes(arrays["ids"])
    columns = {}
    for (measure, model, kind, teacher), values in zip(from_bytes(arrays["columns"]), arrays["values"], strict=True):
        key = column_key(measure, model, kind)
        columns[key] = Column(key, measure, model, kind, values, teacher)
    rows = iter(arrays["flags"])
    flags = {
        group: {label: np.unpackbits(next(rows), count=len(ids)).astype(bool) for label in labels}
        for group, labels in from_bytes(arrays["labels"])
    }
    return Snapshot(ids, columns, flags, at, 0.0)
