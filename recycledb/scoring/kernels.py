"""How a batch goes through a network: packed, padded or one text at a time, all with the same numbers.

Invariant: a kernel is used only after `choose` has seen it reproduce, on the network at hand, the hidden states of
texts computed one at a time. The kernels in order of speed:

    packed   sequences end to end, shared beginnings once, attention a sequence at a time (attention.py)
    padded   right padding without a mask: under causal attention no token sees what stands to its right
    single   one text at a time through the model's own forward: for whatever the others do not fit

This module refuses to know samples or statistics: it turns `Work` into sums of negative log-likelihoods.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from recycledb.scoring.batching import Work, pad
from recycledb.scoring.network import Network, token_losses

log = logging.getLogger(__name__)

# How far hidden states may lie apart, relative to their length, for two kernels to count as the same. A leak between
# sequences moves them by tenths; bfloat16 and float16 round by hundredths.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 2e-2}


class Kernel(Protocol):
    """One way to compute a batch; `name` is stored with each number."""

    name: str

    def sums(self, works: Sequence[Work]) -> list[float]:
        """Return each work's sum of its target tokens' negative log-likelihoods, in float64 over float32 terms."""
        ...


class Single:
    """One text at a time through the model's own forward."""

    name = "single"

    def __init__(self, network: Network) -> None:
        self.network = network

    def sums(self, works: Sequence[Work]) -> list[float]:
        return [self._sum(work) for work in works]

    def _sum(self, work: Work) -> float:
        ids = torch.from_numpy(work.ids.astype(np.int64)).to(self.network.device)
        logits = self.network.model(input_ids=ids[None], use_cache=False).logits[0]
        return float(token_losses(logits[work.start - 1 : -1], ids[work.start :]).double().sum())


class Padded:
    """Sequences side by side, padded on the right, without a mask."""

    name = "padded"

    def __init__(self, network: Network) -> None:
        self.network = network

    def sums(self, works: Sequence[Work]) -> list[float]:
        ids, rows, targets = (torch.from_numpy(array).to(self.network.device) for array in pad(works))
        hidden = self.network.hidden(ids).flatten(0, 1)
        losses = self.network.losses(hidden[rows.to(hidden.device)], targets)
        return split_sums(losses, [work.n_tokens for work in works])


def split_sums(losses: Tensor, counts: Sequence[int]) -> list[float]:
    """Return the float64 sums of consecutive runs of (N,) float32 losses."""
    terms = losses.double().cpu().numpy()
    ends = np.cumsum(counts)
    return [float(terms[end - count : end].sum()) for end, count in zip(ends, counts, strict=True)]


def choose(network: Network) -> Kernel:
    """Return the fastest kernel that gives this network's own numbers."""
    if network.head is None:
        return Single(network)
    if not _agrees(network):
        log.warning("%s sees padding to the right; texts are scored one by one", type(network.model).__name__)
        return Single(network)
    return Padded(network)


@torch.inference_mode()
def _agrees(network: Network) -> bool:
    """Say whether a text's hidden states stay what they are when it is padded on the right."""
    ids = torch.arange(23, device=network.device)[None] * 7 % network.vocabulary
    alone = network.hidden(ids[:, :9])
    padded = network.hidden(ids)[:, :9]
    return close(padded, alone, network.dtype)


def close(states: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Say whether (…, H) hidden states are the same up to the rounding of `dtype`."""
    distance = (states - expected).float().norm(dim=-1)
    length = expected.float().norm(dim=-1)
    return bool((distance <= _TOLERANCE[dtype] * length).all())
