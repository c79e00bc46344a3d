"""The measured peak of matrix multiplication, the reference for utilisation.

Invariant: the figure is measured on the device in use, never looked up, and does not depend on a model.
"""

import time
from functools import cache

import torch

_SIDES = {"cpu": 2048, "cuda": 8192}
_REPEATS = {"cpu": 3, "cuda": 20}
_FIRST_SIDE = 256
_LONG_S = 0.1  # a product that takes this long is large enough: in float16 a CPU needs minutes for the largest


@cache
@torch.inference_mode()
def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of the fastest of a few large square products; measured once."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    side = _FIRST_SIDE
    while side < _SIDES[kind] and _seconds(*_factors(side, device, dtype)) < _LONG_S:
        side *= 2
    left, right = _factors(side, device, dtype)
    torch.mm(left, right)
    return 2.0 * side**3 / min(_seconds(left, right) for _ in range(_REPEATS[kind]))


def _factors(side: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return left, right


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    _wait(left.device)
    begin = time.perf_counter()
    torch.mm(left, right)
    _wait(left.device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
