"""Text files in encodings other than UTF-8, read as UTF-8.

Invariant: nothing is guessed except UTF-16 and UTF-32 with a byte order mark, which cannot be mistaken. A byte that the encoding does not
have is an error, never a replacement character.
"""

import codecs
import io
from pathlib import Path
from typing import Any, BinaryIO

from recycledb.errors import FormatError

_BLOCK = 1 << 16
_MARKS = {  # the longer ones first, since one begins like the other
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UTF8 = {"utf-8", "utf-8-sig", "ascii"}


def known_encoding(name: str | None) -> str | None:
    """Return the name under which Python knows an encoding; None for UTF-8. FormatError if there is none of that name."""
    if name is None:
        return None
    try:
        found = codecs.lookup(name)
        "".encode(found.name)  # raises for codecs that are no text encoding, such as base64
    except (LookupError, ValueError) as error:
        raise FormatError(
            f"unknown encoding {name!r}: give a name such as latin-1, cp1252, utf-16 or gb18030"
        ) from error
    return None if found.name in _UTF8 else found.name


def marked_encoding(head: bytes) -> str | None:
    """Return the encoding that a byte order mark at the start of a file tells, if it is not UTF-8."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


class Utf8File(io.RawIOBase):
    """A file in another encoding as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str, path: Path) -> None:
        self._file, self._path, self._encoding = file, path, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            block = self._file.read(_BLOCK)
            self._ended = not block
            self._ready = self._decoded(block)
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def _decoded(self, block: bytes) -> bytes:
        try:
            return self._decoder.decode(block, final=not block).encode()
        except UnicodeError as error:
            raise FormatError(
                f"{self._path} is not {self._encoding} text ({error}): give its own --encoding"
            ) from error
