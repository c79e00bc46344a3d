"""What is asked of the engine and what it gives back; light, so that callers need not import torch to name them."""

from dataclasses import dataclass
from typing import Any

from recycledb.methods import Readout
from recycledb.schema import LossStatus, Texts


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for statistics, by their names, and readouts of one variant's texts; `key` comes back with each result."""

    key: Any
    texts: Texts
    stats: tuple[str, ...]
    readouts: tuple[Readout, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """One statistic: the sum and number of the target tokens' negative log-likelihoods, or why there is none.

    Of a readout, one choice: `stat` is the readout's prompt_id, and the sum is minus the choice's log-probability.

    `loss_sum` is the float64 sum of float32 terms in nats, None unless `status` is OK; NOT_FINITE has all but the sum.
    `kernel` says how it was computed (`known` where the sum was found instead), so that a doubted number can be traced.
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
    """How far a run has come: results given back, tokens computed (padding not counted), and how fast.

    `utilisation` is the share of the measured matrix multiplication peak that went into useful work.
    """

    results: int
    tokens: int
    seconds: float
    utilisation: float | None


@dataclass(frozen=True, slots=True)
class TokenCount:
    """What requests come to before any model is loaded: equal work counted once."""

    requests: int
    statistics: int
    works: int
    tokens: int
    targets: int
