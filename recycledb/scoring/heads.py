"""The vocabulary projection and its log-softmax: hidden rows in, losses of their targets out.

Two ways, with the same numbers up to rounding:

    whole     the model's own head on some rows at a time: everything that an architecture does to its logits is kept
    blocks    some rows against a part of the vocabulary at a time, in float32 on CPU, for a head that is only a linear map:
              the logits stay in the cache, and log-sum-exp is accumulated over the parts

Measured (2,048 rows, one thread, share of the matrix multiplication peak): hidden size 256 and vocabulary 32,000: 0.70 whole and 0.95
in blocks; 768 and 50,257: 0.60 and 0.9; in bfloat16 0.81 and 0.77.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear


class _Chunk(NamedTuple):
    """The most rows and the most logits that go through a whole head at once."""

    rows: int
    logits: int


# On CPU 256 rows were the fastest of 64 to 1,024; 2**25 float32 logits are 128 MiB. A GPU wants more rows to be busy.
_CHUNKS = {"cpu": _Chunk(256, 1 << 25), "cuda": _Chunk(4096, 1 << 27)}

# The log-softmax of this many rows stays in a CPU's cache: a quarter of the time of all rows at once.
_CACHED_ROWS = 8

# Of 128 to 2,048 rows and 512 to 4,096 vocabulary entries, the fastest for both sizes above: 2 MiB of logits.
_BLOCK_ROWS, _BLOCK_WORDS = 512, 1024


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Return how many rows go through a whole head at once."""
    limits = _CHUNKS["cuda" if device.type == "cuda" else "cpu"]
    return max(1, min(limits.rows, limits.logits // vocabulary))


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihoods in float32: (N, V) logits and (N,) ids to (N,)."""
    targets = targets.to(logits.device)
    step = _CACHED_ROWS if logits.device.type == "cpu" else max(len(logits), 1)
    parts = [
        cross_entropy(logits[i : i + step].float(), targets[i : i + step], reduction="none")
        for i in range(0, len(logits), step)
    ]
    return torch.cat(parts)


def block_losses(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Return the same for logits = rows · weightᵀ + bias: (N, H) rows, (V, H) weight, (V,) bias and (N,) ids to (N,) float32."""
    blocks = max(1, math.ceil(len(rows) / _BLOCK_ROWS))  # of equal size: a small remainder would be slow for its size
    parts = zip(rows.tensor_split(blocks), targets.tensor_split(blocks), strict=True)
    return torch.cat([_block_of_rows(some, weight, bias, theirs) for some, theirs in parts])


def _block_of_rows(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    words = len(weight)
    first = torch.zeros(len(rows), dtype=torch.int64)
    order = targets.argsort()
    edges = torch.searchsorted(targets[order], torch.arange(0, words + _BLOCK_WORDS, _BLOCK_WORDS)).tolist()
    of_target = torch.empty(len(rows), dtype=torch.float32)
    total: Tensor | None = None
    for number, begin in enumerate(range(0, words, _BLOCK_WORDS)):
        part = slice(begin, begin + _BLOCK_WORDS)
        logits = linear(rows, weight[part], None if bias is None else bias[part]).float()
        here = order[edges[number] : edges[number + 1]]
        of_target[here] = logits[here, targets[here] - begin]
        # log-sum-exp from cross_entropy, which reads memory once: loss of entry 0 = lse - logit of entry 0
        summed = cross_entropy(logits, first, reduction="none") + logits[:, 0]
        total = summed if total is None else torch.logaddexp(total, summed)
    assert total is not None
    return total - of_target
