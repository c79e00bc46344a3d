"""Statuses, content addresses and canonical JSON.

Invariant: a row's id is a pure function of its content, so the same content has the same id in every store, and a row may
be inserted twice without harm. Only `attempt`, `batch`, `worker` and `dataset_import`, which record events, have random ids.
It does not know how rows are stored (the tables are in `recycledb.store.tables`) and imports the standard library only, so that
everything that needs these names, the command line's help included, starts quickly.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple, Self

CONTENT_ID_LENGTH = 32  # 128 bits: samples, variants, replies
IDENTITY_LENGTH = 12  # 48 bits: the few teachers, students and prompts of a store
PAIR_ID_LENGTH = 24  # 96 bits: token sequences


ORIGIN = "origin"  # the kind of the variant that is the sample itself


class ReplyStatus(StrEnum):
    """How an attempt at a question ended."""

    OK = "ok"  # a complete text
    FAILED = "failed"  # permanently failed (too long, refused, cut off, empty): asked again only on request
    ERROR = "error"  # a retriable error of the network or the server: the next sync asks again


class LossStatus(StrEnum):
    """How a statistic was computed, or why it has no value: `loss_sum` is NULL unless the status is `ok` or `imported`."""

    OK = "ok"
    EMPTY = "empty"  # no target text
    TOO_LONG = "too_long"  # no token of the target is left after the cut to max_length
    TOO_SHORT = "too_short"  # no token with another before it to predict it from
    NOT_FINITE = "not_finite"  # the model's losses are NaN or infinite, or their perplexity is
    IMPORTED = "imported"  # a published mean: loss_sum is the mean and n_tokens is 1
    INVALID = "invalid"  # a published value that is impossible (0, NaN)


# Bounds of a mean loss, in nats per token: a little below 0 is rounding; above 700, the perplexity or a ratio of two may overflow a double.
LEAST_MEAN_LOSS, MOST_MEAN_LOSS = -1.0, 700.0


def is_mean_loss(value: float) -> bool:
    """Return whether a mean loss is a number whose perplexity is finite too."""
    return LEAST_MEAN_LOSS <= value <= MOST_MEAN_LOSS  # False for NaN


class _Texts(NamedTuple):
    instruction: str
    input: str
    output: str


class Texts(_Texts):
    """The three texts of a sample or a variant; `input` is empty where there is none.

    `context` is what stands before the question: a system prompt and earlier turns, as JSON (see `context_json`), or None. It belongs to
    the sample, so all variants of a sample have the same one. It is not one of the three: iterating, `_fields` and `_asdict` leave it out.
    """

    context: str | None = None

    def __new__(cls, instruction: str, input: str, output: str, context: str | None = None) -> Self:
        """Return texts; `context` as `context_json` returns it."""
        texts = super().__new__(cls, instruction, input, output)
        if context is not None:
            texts.context = context
        return texts

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return the texts of a database row that has them and the context as attributes."""
        return cls(row.instruction, row.input, row.output, row.context)

    def __eq__(self, other: object) -> bool:
        return tuple.__eq__(self, other) is True and getattr(other, "context", None) == self.context

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return tuple.__hash__(self) if self.context is None else hash((*self, self.context))

    def __repr__(self) -> str:
        more = "" if self.context is None else f", context={self.context!r}"
        return f"Texts(instruction={self.instruction!r}, input={self.input!r}, output={self.output!r}{more})"

    def _replace(self, /, **fields: Any) -> Self:
        """Return a copy with other texts, in the same context unless `context` is given."""
        return type(self)(**{**self._asdict(), "context": self.context, **fields})


def context_json(messages: Sequence[tuple[str, str]]) -> str | None:
    """Return messages, given as (role, content), in the form that `sample.context` has; None if there are none.

    The roles are system, user and assistant.
    """
    return canonical_json([{"role": role, "content": content} for role, content in messages]) if messages else None


def context_messages(context: str | None) -> list[tuple[str, str]]:
    """Return the messages of a context as (role, content)."""
    return [(each["role"], each["content"]) for each in json.loads(context)] if context else []


def canonical_json(value: Any) -> str:
    """Return `value` as JSON in the one form that identities are hashed from: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_id(what: str, *content: Any, length: int = CONTENT_ID_LENGTH) -> str:
    """Return the content address of `content`: the first `length` hex digits of SHA-256 over its canonical JSON.

    `what` names the kind of row, so that equal content of two kinds has two addresses.
    """
    return hashlib.sha256(canonical_json([what, *content]).encode()).hexdigest()[:length]


def random_id() -> str:
    """Return a new random id for a row that records an event rather than content."""
    return secrets.token_hex(CONTENT_ID_LENGTH // 2)


def sample_id(texts: Texts) -> str:
    """Return the id of the sample with these texts; the context is part of it only where there is one."""
    return content_id("sample", *texts) if texts.context is None else content_id("sample", *texts, texts.context)


def variant_id(sample: str, kind: str, texts: Texts, parent: str | None = None, reply: str | None = None) -> str:
    """Return the id of a variant of `sample`: derived from `parent` by the teacher's `reply`, unless it is the origin."""
    return content_id("variant", sample, str(kind), parent, reply, *texts)


def utc_now() -> str:
    """Return the current time as ISO 8601 in UTC with microseconds, which sorts as text."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# The parameters that limit a reply's length: synonyms.
LIMITS = ("max_completion_tokens", "max_tokens")
DEFAULT_LIMIT = 2048


def without_limit(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return a teacher's identity without the limit on a reply's length, on which a reply that ended by itself does not depend."""
    params = identity.get("params")
    if not isinstance(params, dict):
        return dict(identity)
    return {**identity, "params": {key: value for key, value in params.items() if key not in LIMITS}}


def limit_of(identity: Mapping[str, Any]) -> int:
    """Return the longest reply, in tokens, that a teacher's parameters allow; 0 for no limit."""
    params = identity.get("params")
    given = next((params[key] for key in LIMITS if params.get(key)), 0) if isinstance(params, dict) else 0
    if not isinstance(given, int | float) or isinstance(given, bool) or not 1 <= given < 2**31:
        given = 0  # -1 means "no limit" to some servers
    if not given and identity.get("provider") == "transformers":  # it has to stop somewhere
        return DEFAULT_LIMIT
    return int(given)


def teacher_id_of(identity: Mapping[str, Any]) -> str:
    """Return the content address of what changes a teacher's replies."""
    return content_id("teacher", identity, length=IDENTITY_LENGTH)
