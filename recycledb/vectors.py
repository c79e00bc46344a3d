"""Vectors as bytes: little-endian 32-bit floats, as they are stored."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


def encoded(vector: Sequence[float] | npt.NDArray[np.float64]) -> bytes:
    """Return a vector as stored."""
    return np.asarray(vector, "<f4").tobytes()


def decoded(content: bytes) -> Vector:
    """Return a stored vector."""
    return np.frombuffer(content, "<f4")
