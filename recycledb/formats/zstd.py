"""zstd files, decompressed block by block (at most 128 KiB each), so that a small file of gigabytes of content is never in memory.

Invariant: at most a window and a block are in memory, and a file that ends within a frame is an EOFError (zstandard's own reader treats
it as the end). See RFC 8878 for the layout of frames and blocks; only their lengths are parsed here.
"""

import io
from typing import Any, BinaryIO

import zstandard

ZSTD_WINDOW = 1 << 27  # 128 MiB, the default limit of `zstd -d`

_MAGIC = b"\x28\xb5\x2f\xfd"
_RLE, _RESERVED = 1, 3  # kinds of blocks
_PIECE = 1 << 16


class WindowTooLarge(Exception):  # noqa: N818 - internal; `containers` raises FormatError with the file's name
    """A frame refers further back than ZSTD_WINDOW."""


class ZstdFile(io.RawIOBase):
    """The decompressed content of a zstd file, frame after frame."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame: Any = None
        self._checksum = False
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            if self._frame is None and not self._begin():
                return 0
            self._unpacked = memoryview(self._block())
        part = self._unpacked[: len(buffer)]
        buffer[: len(part)] = part
        self._unpacked = self._unpacked[len(part) :]
        return len(part)

    def _begin(self) -> bool:
        """Read the header of the next frame; False at the end of the file."""
        while magic := self._file.read(4):
            if magic == _MAGIC:
                self._frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
                self._frame.decompress(magic + self._header())
                return True
            if len(magic) < 4:
                raise EOFError("the last zstd frame is truncated")
            if magic[0] & 0xF0 != 0x50 or magic[1:] != b"\x2a\x4d\x18":
                raise zstandard.ZstdError("the bytes after a frame are not a zstd frame")
            self._skip(int.from_bytes(self._exactly(4), "little"))
        return False

    def _header(self) -> bytes:
        descriptor = self._exactly(1)
        flags = descriptor[0]
        single = bool(flags & 0x20)
        self._checksum = bool(flags & 0x04)
        window = b"" if single else self._exactly(1)
        dictionary = self._exactly((0, 1, 2, 4)[flags & 3])
        content = self._exactly((1 if single else 0, 2, 4, 8)[flags >> 6])
        if single:
            needed = int.from_bytes(content, "little")
        else:
            base = 1 << 10 + (window[0] >> 3)
            needed = base + (base >> 3) * (window[0] & 7)
        if needed > ZSTD_WINDOW:
            raise WindowTooLarge
        return descriptor + window + dictionary + content

    def _block(self) -> bytes:
        """Return the content of the next block; the last one ends the frame."""
        head = self._exactly(3)
        number = int.from_bytes(head, "little")
        last, kind, size = number & 1, number >> 1 & 3, number >> 3
        if kind == _RESERVED or size > (1 << 17):
            raise zstandard.ZstdError("a zstd block is larger than the format allows")
        packed = head + self._exactly(1 if kind == _RLE else size)
        if last and self._checksum:
            packed += self._exactly(4)
        unpacked: bytes = self._frame.decompress(packed)
        if last:
            if not self._frame.eof:
                raise EOFError("the last zstd frame is truncated")
            self._frame = None
        return unpacked

    def _exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise EOFError("the last zstd frame is truncated")
        return data

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._exactly(min(count, _PIECE)))
