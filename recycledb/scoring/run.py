"""One run of the engine over a stream of requests: known outputs, packs in progress, and the requests that wait for them.

Invariant: each request gets exactly one result for each statistic, readout and vector in it; each distinct work is computed at most once in
a run, whichever requests contain it and whenever they come. How it is computed is up to the engine's lanes, which get
packs and return the output of each work.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from recycledb.schema import LossStatus, is_mean_loss
from recycledb.scoring.outputs import Output
from recycledb.scoring.packs import Batch, Work
from recycledb.scoring.requests import Progress, Request, Result
from recycledb.scoring.spans import Span
from recycledb.scoring.tokeniser import windows

if TYPE_CHECKING:
    from recycledb.scoring.pool import Outputs
    from recycledb.scoring.scorer import Scorer

STOP_CHECK_S = 0.1

Known = Callable[[Sequence[Span]], Mapping[str, Output]]  # the outputs that the store has, by the spans' keys


class Run:
    """One call of `Scorer.score`."""

    def __init__(
        self,
        engine: "Scorer",
        known: Known | None,
        progress: Callable[[Progress], None] | None,
        possible: Callable[[], float] | None,
        stopped: Callable[[], bool] | None = None,
    ) -> None:
        self._engine = engine
        self._known = known
        self._progress = progress
        self._possible = possible  # the operations that the lanes could have done since the beginning
        self._stop_asked, self._cancelled = stopped, False
        self._outputs: dict[str, Output] = {}
        self._waiting: dict[str, list[tuple[Any, Span]]] = defaultdict(list)
        self._computing: dict[Future[Outputs | None], Batch] = {}
        self._started = time.monotonic()
        self._results = self._tokens = self._targets = 0

    def results(self, requests: Iterable[Request]) -> Iterator[list[Result]]:
        """Yield the results of all requests; after a stop, only those of packs in progress."""
        batches: deque[Batch] = deque()
        ahead = self._tokenised(requests)
        more = True
        began = self._engine.began = self._engine.began or self._started
        while (more or batches or self._computing) and not self.ended():
            while more and len(batches) + len(self._computing) < self._engine.wanted:
                window = next(ahead, None)
                more = window is not None
                if window is not None:
                    found, works = self._admit(window)
                    batches.extend(self._engine.batches(works))
                    yield from self._report(found)
            while batches and len(self._computing) < self._engine.wanted:
                batch = batches.popleft()
                self._computing[self._engine.compute_ahead(batch, self.ended)] = batch
            if self._computing:
                yield from self._report(self._finished())
                if more or batches:
                    self._engine.note_duration(time.monotonic() - began)
        while self._computing:
            yield from self._report(self._finished())

    def ended(self) -> bool:
        """Return whether no lane may start another pack."""
        return self._cancelled or (self._stop_asked is not None and self._stop_asked())

    def cancel(self) -> None:
        """Drop the packs that no lane has started."""
        self._cancelled = True

    def _tokenised(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, list[Span]]]]:
        """Yield windows of requests with their spans, while the next one is tokenised."""
        before: tuple[list[Request], Future[list[list[Span]]]] | None = None
        for window in windows(requests):
            future = self._engine.spans_ahead(window)
            if before is not None:
                yield list(zip(before[0], before[1].result(), strict=True))
            before = window, future
        if before is not None:
            yield list(zip(before[0], before[1].result(), strict=True))

    def _admit(self, window: list[tuple[Request, list[Span]]]) -> tuple[list[Result], list[Work]]:
        """Return the results that need no computation, and the work that does."""
        pairs = [(request.key, span) for request, spans in window for span in spans]
        found = self._known_outputs([span for _, span in pairs])
        results: list[Result] = []
        works: list[Work] = []
        for key, span in pairs:
            if span.pair_id is None:
                results.append(_result(key, span, None, "none"))
            elif span.key in found:
                results.append(_result(key, span, found[span.key], "known"))
            else:
                if span.key not in self._waiting:
                    works.append(Work(span.pair_id, span.ids, span.start, span.choices, span.pooling))
                self._waiting[span.key].append((key, span))
        return results, works

    def _known_outputs(self, spans: Sequence[Span]) -> dict[str, Output]:
        """Return outputs that need no computation, by the spans' keys: of this run, and those that the store has."""
        distinct = {span.key: span for span in spans if span.pair_id is not None}
        found = {key: self._outputs[key] for key in distinct if key in self._outputs}
        unknown = [span for key, span in distinct.items() if key not in found and key not in self._waiting]
        if self._known is not None and unknown:
            found |= self._known(unknown)
        return found

    def _finished(self) -> list[Result]:
        """Wait briefly for a pack, and return the results of all requests that waited for it; none if it was dropped."""
        done, _ = wait(self._computing, STOP_CHECK_S, return_when=FIRST_COMPLETED)
        results: list[Result] = []
        for future in done:
            batch, computed = self._computing.pop(future), future.result()
            if computed is None:
                continue
            outputs, kernel = computed
            self._tokens += batch.tokens
            for work, output in zip(batch.works, outputs, strict=True):
                if self._known is None:  # else `known` finds it once it is yielded; millions would fill memory
                    self._outputs[work.key] = output
                self._targets += work.n_tokens or bool(work.choices)
                waiting = self._waiting.pop(work.key)
                results += [_result(key, span, output, kernel) for key, span in waiting]
        return results

    def _report(self, results: list[Result]) -> Iterator[list[Result]]:
        if not results:
            return
        self._results += len(results)
        if self._progress is not None:
            seconds = time.monotonic() - self._started
            flops = self._engine.flops(self._tokens, self._targets)
            possible = self._possible() if self._possible is not None else 0.0
            share = flops / possible if possible else None
            self._progress(Progress(self._results, self._tokens, seconds, share))
        yield results


def _result(key: Any, span: Span, output: Output | None, kernel: str) -> Result:
    status = span.status
    if output is not None and not _is_usable(span, output):
        status, output = LossStatus.NOT_FINITE, None
    return Result(
        key=key,
        stat=span.stat,
        loss_sum=float(output[0]) if output is not None and span.is_loss else None,
        n_tokens=span.n_tokens,
        truncated=span.truncated,
        merged=span.merged,
        status=status,
        pair_id=span.pair_id,
        kernel=kernel,
        output=output,
    )


def _is_usable(span: Span, output: Output) -> bool:
    return is_mean_loss(output[0] / span.n_tokens) if span.is_loss else bool(np.isfinite(output).all())
