"""The protocol between the engine and its scoring processes: pickled values in frames, over pipes.

Invariant: a frame is eight bytes of length and then the value; an incomplete frame reads as the end of the stream.
Not for use between machines or users, since unpickling runs code from the sender.
"""

import pickle
import struct
from dataclasses import dataclass
from typing import IO, Any

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker loads, and its number of threads."""

    model: str
    revision: str | None
    dtype: str
    max_length: int
    threads: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded; `kernel` names the kernel that it will use."""

    kernel: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A pack, or the loading of the model, failed; `known` where the message is written for the user."""

    message: str
    known: bool


def write_frame(stream: IO[bytes], value: Any) -> None:
    """Write one pickled value, preceded by its length."""
    content = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Any:
    """Read one value; raise EOFError where the other process has ended."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return pickle.loads(content)  # from our own engine, over a private pipe
