"""Token ids of strings, kept while several students are scored one after the other: a tokenizer that they share reads each once.

Invariant: what comes back is what the tokenizer at hand gives; ids are found again only under the same tokenizer (its whole
serialised state). They lie in a temporary database that is gone with the process. Where that cannot be kept (a full disk), strings
are tokenised again; nothing fails for it.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

log = logging.getLogger(__name__)

_KEYS = 500  # of one IN list


class Encodings:
    """Token ids by tokenizer and string. One thread at a time may use it."""

    def __init__(self) -> None:
        # No name: SQLite keeps it in memory while it is small, then in a file of its own that it has already unlinked.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE encoding (key BLOB PRIMARY KEY, ids BLOB) WITHOUT ROWID")
        self._usable = True

    def encode(
        self, tokenizer: str, texts: Sequence[str], encode: Callable[[list[str]], Sequence[Sequence[int]]]
    ) -> list[Any]:
        """Return the ids of each text, by `encode` where they are not known under `tokenizer` (see `fingerprint`)."""
        if not self._usable:
            return list(encode(list(texts)))
        keys = [_key(tokenizer, text) for text in texts]
        try:
            found = self._find(keys)
            missing = [(key, text) for key, text in zip(keys, texts, strict=True) if key not in found]
            new = dict(zip([key for key, _ in missing], self._new(missing, encode), strict=True))
            self._keep(new)
        except sqlite3.Error as error:
            log.info("token ids are not kept from one student to the next: %s", error)
            self._usable = False
            return list(encode(list(texts)))
        return [found[key] if key in found else new[key] for key in keys]

    @staticmethod
    def _new(missing: list[tuple[bytes, str]], encode: Callable[[list[str]], Sequence[Sequence[int]]]) -> list[Any]:
        return [np.asarray(ids, np.int32) for ids in encode([text for _, text in missing])] if missing else []

    def _find(self, keys: list[bytes]) -> dict[bytes, Any]:
        found = {}
        for start in range(0, len(keys), _KEYS):
            part = keys[start : start + _KEYS]
            marks = ", ".join("?" * len(part))
            rows = self._database.execute(f"SELECT key, ids FROM encoding WHERE key IN ({marks})", part)
            found.update({key: np.frombuffer(ids, np.int32) for key, ids in rows})
        return found

    def _keep(self, new: dict[bytes, Any]) -> None:
        self._database.execute("BEGIN")
        rows = ((key, ids.tobytes()) for key, ids in new.items())
        self._database.executemany("INSERT OR IGNORE INTO encoding VALUES (?, ?)", rows)
        self._database.execute("COMMIT")

    def close(self) -> None:
        """Forget everything."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fingerprint(tokenizer: Any) -> str | None:
    """Return what two tokenizers have in common exactly when they encode alike; None for one written in Python."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None or not hasattr(inner, "to_str"):
        return None
    state = f"{type(tokenizer).__qualname__} {inner.to_str()}"
    return hashlib.sha256(state.encode()).hexdigest()


def _key(tokenizer: str, text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16, key=bytes.fromhex(tokenizer)).digest()
