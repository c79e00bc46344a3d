"""Texts to token spans: which tokens a statistic averages over, and what stands before them.

Invariant: a span depends on the texts, the template, the tokenizer and max_length only, and follows the published
scorer token for token (arXiv:2402.10110): the boundary between context and target is the length of the separately
encoded context, even where the joined text merges a token across it (such spans are flagged `merged`), and sequences
are cut at the end. With n_p = min(len(encode(p)), M), n_q likewise, and `encode` the tokenizer's default encode with
whatever special tokens it adds:

    Q_direct      encode(t) cut to M - n_q + 1       every token but the first
    A_direct      encode(y) cut to M - n_p + 1       every token but the first
    Q_condition   encode(q + t) cut to M             tokens from index len(encode(q))
    A_condition   encode(p + y) cut to M             tokens from index len(encode(p))

This module refuses to know a model: it imports neither torch nor transformers, and `encode` is handed in.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recycledb.schema import PAIR_ID_LENGTH, LossStatus, Stat, Texts
from recycledb.scoring.templates import forward_prompt, question, reverse_prompt

Ids = npt.NDArray[np.int32]
Encode = Callable[[str], Sequence[int]]
EncodeMany = Callable[[list[str]], Sequence[Sequence[int]]]

_NO_IDS: Ids = np.empty(0, np.int32)
_Q_STATS = (Stat.Q_DIRECT, Stat.Q_CONDITION)
_DIRECT_STATS = (Stat.Q_DIRECT, Stat.A_DIRECT)


@dataclass(frozen=True, slots=True)
class Span:
    """One statistic as tokens: the loss is averaged over `ids[start:]`, each given all tokens before it.

    `ids` is empty and `pair_id` None unless `status` is OK. Equal work has equal `pair_id`.
    """

    stat: Stat
    ids: Ids
    start: int
    truncated: bool
    merged: bool
    status: LossStatus
    pair_id: str | None

    @property
    def n_tokens(self) -> int:
        """Return the number of averaged tokens."""
        return len(self.ids) - self.start if self.status is LossStatus.OK else 0


class _Parts(NamedTuple):
    """The strings that a statistic is tokenised from; `whole` is what the model reads."""

    context: str
    target: str
    whole: str


def pair_id(ids: Ids, start: int) -> str:
    """Return the address of a token sequence and of where its target begins."""
    content = start.to_bytes(8, "little") + ids.astype("<i4").tobytes()
    return hashlib.sha256(b"pair" + content).hexdigest()[:PAIR_ID_LENGTH]


def spans(encode: Encode, template: str, max_length: int, texts: Texts, stats: Sequence[Stat]) -> list[Span]:
    """Return one span for each of `stats`, in their order."""
    return [_span(encode, max_length, stat, _parts(template, texts, stat)) for stat in stats]


def batch_spans(
    encode_many: EncodeMany, template: str, max_length: int, items: Iterable[tuple[Texts, Sequence[Stat]]]
) -> list[list[Span]]:
    """Return `spans` of every item, with each distinct string encoded once and all of them in one call."""
    parts = [[(stat, _parts(template, texts, stat)) for stat in stats] for texts, stats in items]
    strings = list(dict.fromkeys(text for item in parts for _, part in item for text in _needed(part)))
    encoded = dict(zip(strings, encode_many(strings), strict=True)) if strings else {}
    return [[_span(encoded.__getitem__, max_length, stat, part) for stat, part in item] for item in parts]


def _parts(template: str, texts: Texts, stat: Stat) -> _Parts:
    if stat in _Q_STATS:
        context, target = reverse_prompt(template, texts), question(texts)
    else:
        context, target = forward_prompt(template, texts), texts.output
    return _Parts(context, target, target if stat in _DIRECT_STATS else context + target)


def _needed(parts: _Parts) -> tuple[str, ...]:
    return (parts.context, parts.whole) if parts.target else ()


def _span(encode: Encode, max_length: int, stat: Stat, parts: _Parts) -> Span:
    if not parts.target:
        return Span(stat, _NO_IDS, 1, False, False, LossStatus.EMPTY, None)
    context, whole = encode(parts.context), encode(parts.whole)
    if stat in _DIRECT_STATS:
        # The published scorer cuts the direct sequence to what the conditioned one leaves, plus one for the first token.
        limit, start, merged = max_length - min(len(context), max_length) + 1, 1, False
    else:
        limit, start = max_length, max(len(context), 1)
        merged = list(whole[: len(context)]) != list(context)
    truncated = len(whole) > limit
    if min(len(whole), limit) > start:
        ids = np.asarray(whole[:limit], np.int32)
        return Span(stat, ids, start, truncated, merged, LossStatus.OK, pair_id(ids, start))
    status = LossStatus.TOO_LONG if len(whole) > start else LossStatus.TOO_SHORT
    return Span(stat, _NO_IDS, start, truncated, merged, status, None)
