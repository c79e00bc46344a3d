"""Draws by hash: which samples are held out, and in which order variants are drawn.

Invariant: a draw depends on the seed and on the row's own id only, so it is the same on every backend, in any order, and stays as it is
when samples are added.
"""

import hashlib
import re
from typing import Any

from recycledb.errors import SelectionError

_SHARE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%")


def number_of(what: str, seed: int, identity: str) -> int:
    """Return a number from 0 to 2^64 - 1 that looks random."""
    return int.from_bytes(hashlib.sha256(f"{what}\0{seed}\0{identity}".encode()).digest()[:8])


def is_held_out(sample: str, percent: float, seed: int) -> bool:
    """Return whether a sample is held out; all its variants are, too. With a larger share, what was held out remains so."""
    return number_of("holdout", seed, sample) * 100 < percent * 2**64


def parse_holdout(text: Any) -> float:
    """Return the percentage of a share such as 5%; a number of samples would make the split move when samples are added."""
    found = _SHARE.fullmatch(str(text).strip())
    if found and 0 < float(found[1]) < 100:
        return float(found[1])
    raise SelectionError(f"holdout is {text!r}; give a share above 0% and below 100%, such as 5%")
