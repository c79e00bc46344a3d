"""Ratings as digits: what the measures share that read a student's next-token probabilities of the ten digits after a prompt."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from recycledb.methods.definition import DIGITS

PLACEHOLDERS = ("{instruction}", "{input}", "{output}", "{question}", "{answer}", "{reference}")


def scale_of(options: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first and the last digit of the option `scale`; raise ValueError unless these are two digits in ascending order."""
    scale = options["scale"]
    if not (len(scale) == 2 and all(type(digit) is int for digit in scale) and 0 <= scale[0] < scale[1] < len(DIGITS)):
        raise ValueError(f"scale = {scale}: give the lowest and the highest digit, such as [1, 5]")
    return scale[0], scale[1]


def shares(logs: Sequence[float]) -> list[float]:
    """Return probabilities that sum to 1 in the ratios of exp(`logs`), without underflow."""
    largest = max(logs)
    weights = [math.exp(log - largest) for log in logs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
