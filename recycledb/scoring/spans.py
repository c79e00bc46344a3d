"""Texts to token spans: the tokens that a statistic averages over, and the context before them.

Invariant: a span depends on the texts, the template, the tokenizer and max_length only, and follows the published
scorer token for token (arXiv:2402.10110): the boundary between context and target is the length of the separately
encoded context, even where the joined text merges a token across it (such spans are flagged `merged`), and sequences
are truncated at the end. With n_p = min(len(encode(p)), M), n_q likewise, and `encode` the tokenizer's default encode
with the special tokens that it adds:

    Q_direct      encode(t) cut to M - n_q + 1       every token but the first
    A_direct      encode(y) cut to M - n_p + 1       every token but the first
    Q_condition   encode(q + t) cut to M             tokens from index len(encode(q))
    A_condition   encode(p + y) cut to M             tokens from index len(encode(p))

This module imports neither torch nor transformers; `encode` is a parameter.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recycledb import methods
from recycledb.methods import Parts, Readout, Statistic, Vector
from recycledb.schema import PAIR_ID_LENGTH, LossStatus, Texts

Ids = npt.NDArray[np.int32]
Encode = Callable[[str], Sequence[int]]
EncodeMany = Callable[[list[str]], Sequence[Sequence[int]]]
Choices = Callable[[tuple[str, ...]], Sequence[int]]

_NO_IDS: Ids = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Span:
    """A statistic, a readout or a vector as tokens.

    Of a statistic, the loss is averaged over `ids[start:]`, each token conditioned on all before it. A readout has `choices`, whose
    log-probabilities are read after `ids`, and a vector has the `pooling` of the hidden states of `ids`; there `start` is `len(ids)`.
    `ids` is empty and `pair_id` None unless `status` is OK. `stat` is the name of the statistic, the readout's prompt_id, or the vector's
    key.
    """

    stat: str
    ids: Ids
    start: int
    truncated: bool
    merged: bool
    status: LossStatus
    pair_id: str | None
    choices: tuple[int, ...] = ()
    pooling: str = ""

    @property
    def is_loss(self) -> bool:
        """Whether it is a statistic."""
        return not self.choices and not self.pooling

    @property
    def key(self) -> str:
        """What it computes: equal work has an equal key (as in `packs.Work`)."""
        return f"{self.pair_id}/{self.pooling}{','.join(map(str, self.choices))}"

    @property
    def n_tokens(self) -> int:
        """Return the number of averaged tokens; of a readout or a vector, the number of tokens that the model reads."""
        return len(self.ids) - self.start if self.is_loss and self.status is LossStatus.OK else len(self.ids)


class Item(NamedTuple):
    """What to compute for one variant: its texts, the names of statistics, readouts with a reference's answer, and vectors."""

    texts: Texts
    stats: Sequence[str]
    readouts: Sequence[Readout] = ()
    vectors: Sequence[Vector] = ()
    reference: str = ""


def pair_id(ids: Ids, start: int) -> str:
    """Return the hash of a token sequence and of where its target begins."""
    content = start.to_bytes(8, "little") + ids.astype("<i4").tobytes()
    return hashlib.sha256(b"pair" + content).hexdigest()[:PAIR_ID_LENGTH]


def spans(encode: Encode, template: str, max_length: int, texts: Texts, stats: Sequence[str]) -> list[Span]:
    """Return one span for each of `stats`, in their order."""
    return [_span(encode, max_length, stat, _statistic(stat).parts(template, texts)) for stat in stats]


def batch_spans(
    encode_many: EncodeMany, template: str, max_length: int, items: Iterable[Item], choices: Choices | None = None
) -> list[list[Span]]:
    """Return the spans of every item: statistics, readouts, vectors; each distinct string is encoded once, all in one call.

    `choices` gives the token ids of a readout's choices; it is needed only where there are readouts.
    """
    items = list(items)
    parts = [[(stat, _statistic(stat).parts(template, item.texts)) for stat in item.stats] for item in items]
    prompts = [[(each, each.prompt(item.texts, item.reference)) for each in item.readouts] for item in items]
    pooled = [[(each, each.text(template, item.texts)) for each in item.vectors] for item in items]
    strings = dict.fromkeys(text for item in parts for _, part in item for text in _needed(part))
    strings |= dict.fromkeys(
        text for item in prompts for readout, prompt in item for text in (prompt, prompt + readout.choices[0])
    )
    strings |= dict.fromkeys(text for item in pooled for _, text in item if text)
    encoded = dict(zip(strings, encode_many(list(strings)), strict=True)) if strings else {}
    encode = encoded.__getitem__
    found = [[_span(encode, max_length, stat, part) for stat, part in item] for item in parts]
    for of_item, asked, wanted in zip(found, prompts, pooled, strict=True):
        for readout, prompt in asked:
            assert choices is not None
            of_item.append(_readout(encode, max_length, readout, prompt, tuple(choices(readout.choices))))
        of_item.extend(_vector(encode, max_length, vector, text) for vector, text in wanted)
    return found


def _statistic(name: str) -> Statistic:
    return methods.statistics()[name]


def _needed(parts: Parts) -> tuple[str, ...]:
    return (parts.context, _whole(parts)) if parts.target else ()


def _whole(parts: Parts) -> str:
    """Return the text that the model reads."""
    return parts.context + parts.target if parts.joined else parts.target


def _span(encode: Encode, max_length: int, stat: str, parts: Parts) -> Span:
    if not parts.target:
        return Span(stat, _NO_IDS, 1, False, False, LossStatus.EMPTY, None)
    context, whole = encode(parts.context), encode(_whole(parts))
    if not parts.joined:
        # The published scorer truncates the direct sequence to the length that the context leaves, plus one for the first token.
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


def _readout(encode: Encode, max_length: int, readout: Readout, prompt: str, ids: tuple[int, ...]) -> Span:
    """Return the span of a prompt, after which the choices are read.

    A prompt is never truncated, since the question is at its end: one that is too long is not computed.
    """
    context = np.asarray(encode(prompt), np.int32)
    merged = list(encode(prompt + readout.choices[0])[: len(context)]) != context.tolist()
    if not 0 < len(context) <= max_length:
        status = LossStatus.TOO_LONG if len(context) else LossStatus.TOO_SHORT
        return Span(readout.prompt_id, _NO_IDS, len(context), False, merged, status, None, ids)
    pair = pair_id(context, len(context))
    return Span(readout.prompt_id, context, len(context), False, merged, LossStatus.OK, pair, ids)


def _vector(encode: Encode, max_length: int, vector: Vector, text: str) -> Span:
    """Return the span of a text whose hidden states are pooled; it is truncated at the end."""
    whole = encode(text) if text else ()
    if not len(whole):
        return Span(vector.key, _NO_IDS, 0, False, False, LossStatus.EMPTY, None, pooling=vector.pooling)
    ids = np.asarray(whole[:max_length], np.int32)
    truncated = len(whole) > max_length
    pair = pair_id(ids, len(ids))
    return Span(vector.key, ids, len(ids), truncated, False, LossStatus.OK, pair, pooling=vector.pooling)
