"""What an engine and an encoder have in common: requests in, results out, over a tokenizer and a pool of lanes.

Invariant: requests are read in the thread that iterates over the results; tokenisation is one window ahead of it, and the lanes are ahead
of both by two packs each.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, Self

from recycledb.scoring.packs import Batch, Work
from recycledb.scoring.pool import LanePool, Outputs
from recycledb.scoring.requests import Progress, Request, Result
from recycledb.scoring.run import Known, Run
from recycledb.scoring.spans import Span


class SpanMaker(Protocol):
    """Makes token spans of requests."""

    def spans(self, requests: Sequence[Request]) -> list[list[Span]]:
        """Return the spans of each request."""
        ...


class Scorer(ABC):
    """A model ready to compute requests."""

    def __init__(self, spans: SpanMaker, pool: LanePool) -> None:
        self.pool = pool
        self.began: float | None = None  # when the first of its runs began
        self._spans = spans
        self._tokenising = ThreadPoolExecutor(1, thread_name_prefix="tokenise")

    @abstractmethod
    def batches(self, works: Iterable[Work]) -> list[Batch]:
        """Return packs, in the order in which they are computed."""

    @property
    def kernels(self) -> list[str]:
        """Return how each lane computes."""
        return [lane.kernel for lane in self.pool.lanes]

    def score(
        self,
        requests: Iterable[Request],
        known: Known | None = None,
        progress: Callable[[Progress], None] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> Iterator[list[Result]]:
        """Yield results pack by pack as they are computed, in no particular order; once `stopped`, only those of packs in progress.

        `known` gets spans and returns the outputs that the store has, including all that was yielded before;
        it is called, and `requests` is read, in the thread that iterates. Raises StudentError where the run cannot continue.
        """
        possible = self.begin_peak() if progress is not None else None
        run = Run(self, known, progress, possible, stopped)
        try:
            yield from run.results(requests)
        finally:
            run.cancel()

    def spans_ahead(self, requests: Sequence[Request]) -> Future[list[list[Span]]]:
        """Return a future of the requests' spans."""
        return self._tokenising.submit(self._spans.spans, requests)

    def compute_ahead(self, batch: Batch, ended: Callable[[], bool]) -> Future[Outputs | None]:
        """Return a future of a pack's outputs, computed on the next idle lane; of None if the run has `ended` by then."""
        return self.pool.submit(batch.works, ended)

    @property
    def wanted(self) -> int:
        """Return how many packs to keep ready: for each lane one in progress and one waiting."""
        return 2 * max(1, len(self.pool.lanes))  # where all were lost, the next one finds a pack waiting

    def flops(self, tokens: int, targets: int) -> float:
        """Return the multiplications and additions with weights that so many tokens and targets take; 0 where that is not known."""
        return 0.0

    def begin_peak(self) -> Callable[[], float] | None:
        """Measure the lanes; return what gives the operations that they could have done since then, None where that is not known."""
        return None

    def note_duration(self, seconds: float) -> None:
        """Take notice of how long a run has lasted that still goes on."""
        return

    def close(self, *, at_once: bool = False) -> None:
        """Stop the lanes and free the model; with `at_once`, without waiting for packs in progress."""
        self.pool.close(at_once=at_once)
        self._tokenising.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(at_once=kind is KeyboardInterrupt)
