"""The scoring engine: requests in, sums of token losses out, batch by batch as they are computed.

Invariant: a number depends on its token sequence, the model and the dtype, not on what it was batched with or on the
order of requests (in float32 to 1e-4 relative, and to the last bits in practice). Equal work is done once. Requests are
read lazily, in the thread that iterates; tokenisation runs ahead in another thread, and so does the model.
This module refuses to know the store: what is known already is asked through `known`, what is new is yielded.
"""

import logging
import queue
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, Self

import torch

from recycledb.errors import StudentError
from recycledb.schema import LossStatus
from recycledb.scoring.batching import Work, by_beginning, by_length
from recycledb.scoring.kernels import choose
from recycledb.scoring.lanes import Lane, LocalLane
from recycledb.scoring.network import load_network, load_tokenizer, positions, resolve_device, resolve_dtype
from recycledb.scoring.requests import Progress, Request, Result, TokenCount
from recycledb.scoring.spans import Span, batch_spans
from recycledb.scoring.templates import TEMPLATES

__all__ = ["Engine", "Progress", "Request", "Result", "TokenCount", "count_tokens"]

log = logging.getLogger(__name__)

Known = Callable[[Sequence[str]], Mapping[str, tuple[float, int]]]

# Requests are tokenised a window at a time; the first is small so that results come at once.
_FIRST_WINDOW = 64
_LAST_WINDOW = 2048


class Tokeniser:
    """A model's tokenizer with the template and length that spans are cut by."""

    def __init__(self, tokenizer: Any, prompt: str, max_length: int) -> None:
        if prompt not in TEMPLATES:
            raise StudentError(f"unknown prompt template {prompt!r}: choose one of {', '.join(TEMPLATES)}")
        if max_length < 2:
            raise StudentError(f"max_length is {max_length}, but a loss needs at least 2 tokens")
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.max_length = max_length

    def spans(self, requests: Sequence[Request]) -> list[list[Span]]:
        """Return the spans of each request, every distinct string tokenised once."""
        items = [(request.texts, request.stats) for request in requests]
        return batch_spans(self._encode, self.prompt, self.max_length, items)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # Longer texts than the model's are cut by spans; verbose=False keeps the tokenizer from warning of them.
        encoded = self.tokenizer(
            texts, return_attention_mask=False, return_token_type_ids=False, truncation=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def count_tokens(
    requests: Iterable[Request],
    model: str,
    *,
    revision: str | None = None,
    prompt: str = "vicuna",
    max_length: int = 2048,
) -> TokenCount:
    """Count the work in `requests` with the model's tokenizer alone; the model is not loaded."""
    tokeniser = Tokeniser(load_tokenizer(model, revision), prompt, max_length)
    seen: set[str] = set()
    number = statistics = tokens = targets = 0
    for window in windows(requests):
        number += len(window)
        for span in (span for item in tokeniser.spans(window) for span in item):
            statistics += 1
            if span.pair_id is not None and span.pair_id not in seen:
                seen.add(span.pair_id)
                tokens += len(span.ids)
                targets += span.n_tokens
    return TokenCount(number, statistics, len(seen), tokens, targets)


def windows(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Yield requests in lists that grow from a few to many."""
    iterator = iter(requests)
    size = _FIRST_WINDOW
    while window := list(islice(iterator, size)):
        yield window
        size = min(2 * size, _LAST_WINDOW)


class Engine:
    """A student ready to score: a tokenizer, and one or more lanes that compute batches side by side."""

    def __init__(self, tokeniser: Tokeniser, lanes: Sequence[Lane], *, parameters: int, budget: int) -> None:
        self.tokeniser = tokeniser
        self.parameters = parameters
        self.budget = budget
        self._lanes = list(lanes)
        self._idle: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self._lanes:
            self._idle.put(lane)
        self._computing = ThreadPoolExecutor(len(self._lanes), thread_name_prefix="score")
        self._tokenising = ThreadPoolExecutor(1, thread_name_prefix="tokenise")

    @classmethod
    def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        prompt: str = "vicuna",
        max_length: int = 2048,
        dtype: str = "float32",
        device: str | None = None,
    ) -> Self:
        """Load a Hugging Face causal language model from a folder or the Hub.

        Raises StudentError where the model, the device or the dtype is not to be had, or where the model has fewer
        positions than `max_length`.
        """
        target, number_type = resolve_device(device), resolve_dtype(dtype)
        tokeniser = Tokeniser(load_tokenizer(model, revision), prompt, max_length)
        network = load_network(model, revision, number_type, target)
        limit = positions(network.model)
        if limit is not None and limit < max_length:
            raise StudentError(
                f"max_length is {max_length}, but {model!r} has {limit} positions: set max_length = {limit}"
            )
        kernel = choose(network, max_length)
        log.info("scoring with %s on %s in %s: %s kernel", model, target, dtype, kernel.name)
        parameters = sum(parameter.numel() for parameter in network.model.parameters())
        return cls(tokeniser, [LocalLane(kernel, target)], parameters=parameters, budget=4096)

    def score(
        self,
        requests: Iterable[Request],
        known: Known | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[list[Result]]:
        """Yield results batch by batch as they are computed, in no particular order.

        `known` is given pair ids and returns (loss_sum, n_tokens) of those that the store has; it is called, and
        `requests` is read, in the thread that iterates.
        """
        run = _Run(self, known, progress)
        try:
            yield from run.results(requests)
        finally:
            run.cancel()

    def batches(self, works: Iterable[Work]) -> Iterator[list[Work]]:
        """Yield batches in the order that the kernel likes: by beginning where it shares them, else by length."""
        packed = all("packed" in lane.kernel for lane in self._lanes)
        return by_beginning(works, self.budget) if packed else by_length(works, self.budget)

    def compute(self, batch: Sequence[Work]) -> tuple[Sequence[Work], list[float], str]:
        """Compute one batch on whichever lane is idle."""
        lane = self._idle.get()
        try:
            return batch, lane.sums(batch), lane.kernel
        finally:
            self._idle.put(lane)

    def close(self) -> None:
        """Stop the lanes and free the model."""
        self._computing.shutdown(wait=True, cancel_futures=True)
        self._tokenising.shutdown(wait=True, cancel_futures=True)
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Run:
    """One call of `score`: what has been computed, what is being computed, and who waits for it."""

    def __init__(self, engine: Engine, known: Known | None, progress: Callable[[Progress], None] | None) -> None:
        self.engine = engine
        self.known = known
        self.progress = progress
        self.sums: dict[str, float] = {}
        self.waiting: dict[str, list[tuple[Any, Span]]] = defaultdict(list)
        self.computing: set[Future[tuple[Sequence[Work], list[float], str]]] = set()
        self.started = time.monotonic()
        self.n_results = self.n_tokens = 0

    def results(self, requests: Iterable[Request]) -> Iterator[list[Result]]:
        """Yield the results of all requests."""
        batches: list[Sequence[Work]] = []
        ahead = self._tokenised(requests)
        more = True
        # A batch is in hand for each lane while another is computed.
        wanted = 2 * len(self.engine._lanes)
        while more or batches or self.computing:
            while more and len(batches) + len(self.computing) < wanted:
                window = next(ahead, None)
                more = window is not None
                if window is not None:
                    found, new = self._admit(window)
                    batches = [*batches, *new]
                    yield from self._report(found)
            while batches and len(self.computing) < wanted:
                self.computing.add(self.engine._computing.submit(self.engine.compute, batches.pop(0)))
            if self.computing:
                yield from self._report(self._finished())

    def cancel(self) -> None:
        """Drop the batches that no lane has begun."""
        for future in self.computing:
            future.cancel()

    def _tokenised(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, list[Span]]]]:
        """Yield windows of requests with their spans, the next one being tokenised meanwhile."""
        before: tuple[list[Request], Future[list[list[Span]]]] | None = None
        for window in windows(requests):
            future = self.engine._tokenising.submit(self.engine.tokeniser.spans, window)
            if before is not None:
                yield list(zip(before[0], before[1].result(), strict=True))
            before = window, future
        if before is not None:
            yield list(zip(before[0], before[1].result(), strict=True))

    def _admit(self, window: list[tuple[Request, list[Span]]]) -> tuple[list[Result], list[list[Work]]]:
        """Return the results that need no computing, and batches of the work that does."""
        pairs = [(request.key, span) for request, spans in window for span in spans]
        found = self._known_sums([span.pair_id for _, span in pairs if span.pair_id is not None])
        results: list[Result] = []
        works: dict[str, Work] = {}
        for key, span in pairs:
            if span.pair_id is None:
                results.append(_result(key, span, None, ""))
            elif span.pair_id in found:
                results.append(_result(key, span, found[span.pair_id], "known"))
            else:
                if span.pair_id not in self.waiting:
                    works[span.pair_id] = Work(span.pair_id, span.ids, span.start)
                self.waiting[span.pair_id].append((key, span))
        return results, list(self.engine.batches(works.values()))

    def _known_sums(self, pair_ids: Sequence[str]) -> dict[str, float]:
        distinct = dict.fromkeys(pair_ids)
        found = {pair: self.sums[pair] for pair in distinct if pair in self.sums}
        unknown = [pair for pair in distinct if pair not in found and pair not in self.waiting]
        if self.known is not None and unknown:
            found |= {pair: loss_sum for pair, (loss_sum, _) in self.known(unknown).items()}
        return found

    def _finished(self) -> list[Result]:
        """Wait for a batch, and return the results of all that waited for it."""
        done, self.computing = wait(self.computing, return_when=FIRST_COMPLETED)
        results: list[Result] = []
        for future in done:
            batch, sums, kernel = future.result()
            for work, loss_sum in zip(batch, sums, strict=True):
                self.sums[work.pair_id] = loss_sum
                self.n_tokens += len(work.ids)
                waiting = self.waiting.pop(work.pair_id)
                results += [_result(key, span, loss_sum, kernel) for key, span in waiting]
        return results

    def _report(self, results: list[Result]) -> Iterator[list[Result]]:
        if not results:
            return
        self.n_results += len(results)
        if self.progress is not None:
            self.progress(Progress(self.n_results, self.n_tokens, time.monotonic() - self.started, None))
        yield results


def _result(key: Any, span: Span, loss_sum: float | None, kernel: str) -> Result:
    return Result(
        key=key,
        stat=span.stat,
        loss_sum=loss_sum,
        n_tokens=span.n_tokens if span.status is LossStatus.OK else 0,
        truncated=span.truncated,
        merged=span.merged,
        status=span.status,
        pair_id=span.pair_id,
        kernel=kernel,
    )
