"""Sentence encoders: vectors of texts from a model that reads in both directions, such as all-MiniLM-L6-v2.

The vector is the mean (or another pooling) of the last hidden states over the attention mask, divided by its length, as
sentence-transformers computes it for models with mean pooling. Texts are truncated by the model's own tokenizer at max_length, so that
the tokens that it adds at the end are kept.

Invariant: a vector does not depend on the texts that are computed with it; padding is masked.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Self

import torch

from recycledb.errors import StudentError
from recycledb.methods import Vector
from recycledb.pretrained import loader
from recycledb.schema import LossStatus
from recycledb.scoring.network import resolve_device, resolve_dtype
from recycledb.scoring.outputs import pool, unit
from recycledb.scoring.requests import Progress, Request, Result
from recycledb.scoring.spans import pair_id
from recycledb.scoring.tokeniser import windows

_BATCH_TOKENS = 8_192  # with padding
TEMPLATE = "none"


@dataclass(frozen=True, slots=True)
class _Text:
    request: Request
    vector: Vector
    ids: Sequence[int]
    truncated: bool


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
        known: object = None,
        progress: Callable[[Progress], None] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> Iterator[list[Result]]:
        """Yield the vectors batch by batch; once `stopped`, no further batch is computed."""
        started, tokens, results = monotonic(), 0, 0
        for window in windows(requests):
            texts, empty = self._tokenised(window)
            for batch in [[], *_batches(texts)]:
                if stopped is not None and stopped():
                    return
                found = [*(empty if not batch else ()), *self._embedded(batch)]
                if found:
                    tokens += sum(len(text.ids) for text in batch)
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
                    empty.append(_result(request.key, vector, LossStatus.EMPTY))
                    continue
                ids = self.tokenizer(text, truncation=True, max_length=self.max_length, verbose=False)["input_ids"]
                cut = len(ids) == self.max_length and (
                    len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"]) > len(ids)
                )
                texts.append(_Text(request, vector, ids, cut))
        return texts, empty

    @torch.inference_mode()
    def _embedded(self, batch: Sequence[_Text]) -> list[Result]:
        if not batch:
            return []
        width = max(len(text.ids) for text in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(batch):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            mask[row, : len(text.ids)] = 1
        states = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return [
            _embedding(text, unit(pool(states[row, : len(text.ids)], text.vector.pooling)), self.device.type)
            for row, text in enumerate(batch)
        ]

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
    for text in sorted(texts, key=lambda text: -len(text.ids)):
        if batch and len(batch[0].ids) * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _embedding(text: _Text, output: Any, device: str) -> Result:
    import numpy as np

    if not np.isfinite(output).all():
        return _result(text.request.key, text.vector, LossStatus.NOT_FINITE)
    tokens = np.asarray(text.ids, np.int32)
    return Result(
        key=text.request.key,
        stat=text.vector.key,
        loss_sum=None,
        n_tokens=len(tokens),
        truncated=text.truncated,
        merged=False,
        status=LossStatus.OK,
        pair_id=pair_id(tokens, len(tokens)),
        kernel=f"{device}/encoder",
        output=output,
    )


def _result(key: Any, vector: Vector, status: LossStatus) -> Result:
    return Result(key, vector.key, None, 0, False, False, status, None, "none")
