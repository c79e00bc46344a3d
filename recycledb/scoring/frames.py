"""What the engine and its scoring processes say to each other: pickled values in frames, over pipes.

Invariant: a frame is eight bytes of length and then the value, whole or not at all: a cut one reads as the end.
This module refuses to be used between machines or users, since unpickling runs what it is sent.
"""

import pickle
import struct
from dataclasses import dataclass
from typing import IO, Any

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker loads, and on how many threads it computes."""

    model: str
    revision: str | None
    dtype: str
    max_length: int
    threads: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded; `kernel` says how it will compute."""

    kernel: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A batch, or the loading of the model, failed; `known` where the message is made for the user."""

    message: str
    known: bool


def write_frame(stream: IO[bytes], value: Any) -> None:
    """Write one pickled value with its length before it."""
    content = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Any:
    """Read one value; raise EOFError where the other side is gone."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return pickle.loads(content)  # from our own engine, over a pipe that nobody else holds
