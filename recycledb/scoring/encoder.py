"""Sentence encoders: vectors of texts from a model that reads in both directions, such as all-MiniLM-L6-v2.

The vector is the mean (or another pooling) of the last hidden states over the attention mask, divided by its length, as
sentence-transformers computes it for models with mean pooling. Texts are truncated by the model's own tokenizer at max_length, so that
the tokens that it adds at the end are kept.

Invariant: a vector does not depend on the texts that are computed with it; padding is masked. Equal texts are computed once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Self

import numpy as np
import torch

from recycledb.errors import StudentError
from recycledb.pretrained import loader
from recycledb.schema import LossStatus
from recycledb.scoring.network import resolve_device, resolve_dtype
from recycledb.scoring.outputs import Output, pool, unit
from recycledb.scoring.requests import Progress, Request, Result
from recycledb.scoring.run import Known
from recycledb.scoring.spans import Span, pair_id
from recycledb.scoring.tokeniser import windows

_BATCH_TOKENS = 8_192  # with padding
TEMPLATE = "none"


@dataclass(frozen=True, slots=True)
class _Text:
    key: Any  # of the request
    span: Span


class Encoder:
    """A sentence encoder ready to embed; it has the interface of `Engine` for requests that want only vectors."""

    def __init__(self, model: Any, tokenizer: Any, max_length: int, device: torch.device) -> None:
        self.model, self.tokenizer, self.max_length, self.device = model, tokenizer, max_length, device

    @classmethod
    def load(
        cls, model: str, *, revision: str | None, max_length: int, dtype: str = "float32", device: str | None = None
    ) -> Self:
        """Load an encoder from a folder or the Hub; raise StudentError where it cannot be, or has fewer positions than `max_length`."""
        target = resolve_device(device)
        tokenizer = loader.load_tokenizer(model, StudentError, revision=revision)
        loaded = loader.load_model(
            model, StudentError, revision=revision, dtype=resolve_dtype(dtype), device=target, encoder=True
        )
        limit = getattr(loaded.config, "max_position_embeddings", None)
        if limit is not None and limit < max_length:
            raise StudentError(
                f"max_length is {max_length}, but {model!r} has {limit} positions: set max_length = {limit} or less"
            )
        return cls(loaded, tokenizer, max_length, target)

    def score(
        self,
        requests: Iterable[Request],
        known: Known | None = None,
        progress: Callable[[Progress], None] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> Iterator[list[Result]]:
        """Yield the vectors batch by batch; once `stopped`, no further batch is computed."""
        started, tokens, results = monotonic(), 0, 0
        for window in windows(requests):
            texts, ready = self._tokenised(window)
            equal: dict[str, list[_Text]] = {}
            for text in texts:
                equal.setdefault(text.span.key, []).append(text)
            for key, output in (known([same[0].span for same in equal.values()]) if known and equal else {}).items():
                ready += [_embedding(text, output, "known") for text in equal.pop(key)]
            for batch in [[], *_batches([same[0] for same in equal.values()])]:
                if stopped is not None and stopped():
                    return
                kernel = f"{self.device.type}/encoder"
                found = [] if batch else ready
                for text, output in zip(batch, self._embedded(batch), strict=True):
                    found += [_embedding(each, output, kernel) for each in equal[text.span.key]]
                if found:
                    tokens += sum(len(text.span.ids) for text in batch)
                    results += len(found)
                    if progress is not None:
                        progress(Progress(results, tokens, monotonic() - started, None))
                    yield found

    def _tokenised(self, requests: Sequence[Request]) -> tuple[list[_Text], list[Result]]:
        """Return the texts with their tokens, and the results of those that are empty."""
        texts, empty = [], []
        for request in requests:
            if request.stats or request.readouts:
                raise StudentError("a sentence encoder has no losses and no next tokens: use it for vectors only")
            for vector in request.vectors:
                text = vector.text(TEMPLATE, request.texts)
                if not text.strip():
                    empty.append(_result(request.key, vector.key, LossStatus.EMPTY))
                    continue
                ids = self.tokenizer(text, truncation=True, max_length=self.max_length, verbose=False)["input_ids"]
                cut = len(ids) == self.max_length and (
                    len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"]) > len(ids)
                )
                whole = np.asarray(ids, np.int32)
                pair = pair_id(whole, len(whole))
                span = Span(vector.key, whole, len(whole), cut, False, LossStatus.OK, pair, pooling=vector.pooling)
                texts.append(_Text(request.key, span))
        return texts, empty

    @torch.inference_mode()
    def _embedded(self, batch: Sequence[_Text]) -> list[Output]:
        if not batch:
            return []
        width = max(len(text.span.ids) for text in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(batch):
            ids[row, : len(text.span.ids)] = torch.from_numpy(text.span.ids)
            mask[row, : len(text.span.ids)] = 1
        states = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return [unit(pool(states[row, : len(text.span.ids)], text.span.pooling)) for row, text in enumerate(batch)]

    def close(self) -> None:
        """Free the model."""
        self.model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _batches(texts: list[_Text]) -> Iterator[list[_Text]]:
    """Yield texts of similar length whose padded size is limited, the longest first."""
    batch: list[_Text] = []
    for text in sorted(texts, key=lambda text: -len(text.span.ids)):
        if batch and len(batch[0].span.ids) * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _embedding(text: _Text, output: Output, kernel: str) -> Result:
    span = text.span
    if not np.isfinite(output).all():
        return _result(text.key, span.stat, LossStatus.NOT_FINITE)
    return Result(
        key=text.key,
        stat=span.stat,
        loss_sum=None,
        n_tokens=len(span.ids),
        truncated=span.truncated,
        merged=False,
        status=LossStatus.OK,
        pair_id=span.pair_id,
        kernel=kernel,
        output=output,
    )


def _result(key: Any, stat: str, status: LossStatus) -> Result:
    return Result(key, stat, None, 0, False, False, status, None, "none")
