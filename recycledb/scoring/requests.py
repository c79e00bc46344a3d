"""The engine's input and output types; a separate module, so that callers need not import torch for them."""

from dataclasses import dataclass
from typing import Any

from recycledb.methods import Readout
from recycledb.schema import LossStatus, Texts


@dataclass(frozen=True, slots=True)
class Request:
    """Statistics (by name) and readouts to compute for one variant's texts; each result has its `key`."""

    key: Any
    texts: Texts
    stats: tuple[str, ...]
    readouts: tuple[Readout, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """One statistic: the sum and number of the target tokens' negative log-likelihoods, or the status that says why not.

    Or one choice of a readout: `stat` is the readout's prompt_id, and the sum is minus the choice's log-probability.

    `loss_sum` is the float64 sum of float32 terms in nats, None unless `status` is OK; with NOT_FINITE only the sum is
    missing. `kernel` says how it was computed (`known` where the store had the sum), so that a number can be traced.
    """

    key: Any
    stat: str
    loss_sum: float | None
    n_tokens: int
    truncated: bool
    merged: bool
    status: LossStatus
    pair_id: str | None
    kernel: str
    choice: int | None = None
    start: int = 0  # tokens before the target


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run: results returned, tokens computed (without padding), and seconds.

    `utilisation` is the useful work as a share of the measured matrix multiplication peak.
    """

    results: int
    tokens: int
    seconds: float
    utilisation: float | None


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The work in requests, counted without loading a model; equal work counts once."""

    requests: int
    statistics: int
    works: int
    tokens: int
    targets: int
