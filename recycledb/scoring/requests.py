"""The engine's input and output types; a separate module, so that callers need not import torch for them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recycledb.methods import Readout, Vector
from recycledb.schema import LossStatus, Texts

if TYPE_CHECKING:
    from recycledb.scoring.outputs import Output


@dataclass(frozen=True, slots=True)
class Request:
    """Statistics (by name), readouts and vectors to compute for one variant's texts; each result has its `key`.

    `reference` is the answer that readouts with {reference} show.
    """

    key: Any
    texts: Texts
    stats: tuple[str, ...]
    readouts: tuple[Readout, ...] = ()
    vectors: tuple[Vector, ...] = ()
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One statistic: the sum and number of the target tokens' negative log-likelihoods, or the status that says why not.

    Or a readout (`stat` is its prompt_id, `output` the log-probabilities of its choices, `n_tokens` the prompt's), or a vector (`stat` is
    its key, `output` the unit vector with the norm behind it, `n_tokens` the text's).

    `loss_sum` is the float64 sum of float32 terms in nats; `output` holds it too. Both are None unless `status` is OK.
    `kernel` says how it was computed (`known` where the store had the sum), so that a number can be traced.
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
    output: "Output | None" = None


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
