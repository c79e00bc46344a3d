"""Sentence encoders: vectors of texts from a model that reads in both directions, such as all-MiniLM-L6-v2.

The vector is the mean (or another pooling) of the last hidden states over the attention mask, divided by its length, as
sentence-transformers computes it for models with mean pooling. Texts are truncated by the model's own tokenizer at max_length, so that
the tokens that it adds at the end are kept.

Invariant: a vector does not depend on the texts that are computed with it; padding is masked. Equal texts are computed once.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import torch

from recycledb.errors import StudentError
from recycledb.methods import Vector
from recycledb.pretrained import loader
from recycledb.schema import LossStatus
from recycledb.scoring.lanes import LocalLane
from recycledb.scoring.network import resolve_device, resolve_dtype
from recycledb.scoring.outputs import Output, pool, unit
from recycledb.scoring.packs import Batch, Work, by_length
from recycledb.scoring.pool import LanePool
from recycledb.scoring.requests import Request
from recycledb.scoring.scorer import Scorer
from recycledb.scoring.spans import Span, pair_id

_BATCH_TOKENS = 8_192  # with padding
TEMPLATE = "none"


class Encoder(Scorer):
    """A sentence encoder ready to embed; for requests that want only vectors."""

    @classmethod
    def load(
        cls, model: str, *, revision: str | None, max_length: int, dtype: str = "float32", device: str | None = None
    ) -> Self:
        """Load an encoder from a folder or the Hub; raise StudentError where it cannot be, or has fewer positions than `max_length`."""
        target = resolve_device(device)
        tokeniser = EncoderTokeniser.load(model, revision, max_length)
        return cls(tokeniser, LanePool([load_lane(model, revision, max_length, dtype, target)]))

    def batches(self, works: Iterable[Work]) -> list[Batch]:
        """Return texts of similar length, whose padded size is limited, the longest first."""
        return list(by_length(works, _BATCH_TOKENS))


def load_lane(model: str, revision: str | None, max_length: int, dtype: str, device: torch.device) -> LocalLane:
    """Load an encoder onto a device of this process."""
    loaded = loader.load_model(
        model, StudentError, revision=revision, dtype=resolve_dtype(dtype), device=device, encoder=True
    )
    limit = getattr(loaded.config, "max_position_embeddings", None)
    if limit is not None and limit < max_length:
        raise StudentError(
            f"max_length is {max_length}, but {model!r} has {limit} positions: set max_length = {limit} or less"
        )
    return LocalLane(Masked(loaded, device), device)


class EncoderTokeniser:
    """An encoder's tokenizer, with the maximal length of texts."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    @classmethod
    def load(cls, model: str, revision: str | None, max_length: int) -> Self:
        """Load the tokenizer of a folder or of the Hub; the model itself is not loaded."""
        return cls(loader.load_tokenizer(model, StudentError, revision=revision), max_length)

    def spans(self, requests: Sequence[Request]) -> list[list[Span]]:
        """Return the spans of each request; StudentError where it wants more than vectors."""
        if any(request.stats or request.readouts for request in requests):
            raise StudentError("a sentence encoder has no losses and no next tokens: use it for vectors only")
        return [[self._span(vector, request) for vector in request.vectors] for request in requests]

    def _span(self, vector: Vector, request: Request) -> Span:
        text = vector.text(TEMPLATE, request.texts)
        if not text.strip():
            return Span(
                vector.key, np.empty(0, np.int32), 0, False, False, LossStatus.EMPTY, None, pooling=vector.pooling
            )
        ids = self.tokenizer(text, truncation=True, max_length=self.max_length, verbose=False)["input_ids"]
        cut = len(ids) == self.max_length and (
            len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"]) > len(ids)
        )
        whole = np.asarray(ids, np.int32)
        pair = pair_id(whole, len(whole))
        return Span(vector.key, whole, len(whole), cut, False, LossStatus.OK, pair, pooling=vector.pooling)


class Masked:
    """How a pack goes through an encoder: side by side, with a mask over the padding."""

    name = "encoder"

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model, device

    def outputs(self, works: Sequence[Work]) -> list[Output]:
        width = max(len(work.ids) for work in works)
        ids = torch.zeros(len(works), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, work in enumerate(works):
            ids[row, : len(work.ids)] = torch.from_numpy(work.ids.astype(np.int64))
            mask[row, : len(work.ids)] = 1
        states = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return [unit(pool(states[row, : len(work.ids)], work.pooling)) for row, work in enumerate(works)]
