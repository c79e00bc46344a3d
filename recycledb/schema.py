"""Statistics, statuses, content addresses and canonical JSON: what a row says, and what makes two rows the same.

Invariant: a row's id is a pure function of its content, so the same content has the same id in every store, and a row may
be inserted twice without harm. Only `attempt` and `worker`, which record events of this machine, have random ids.
This module refuses to know how rows are stored: the tables are in `recycledb.store.tables`. So it loads nothing but the
standard library, and everything that needs these words (the command line's help among it) starts at once.
"""

import hashlib
import json
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

CONTENT_ID_LENGTH = 32  # 128 bits: samples, variants, replies
IDENTITY_LENGTH = 12  # 48 bits: the few teachers, students and prompts of a store
PAIR_ID_LENGTH = 24  # 96 bits: token sequences


ORIGIN = "origin"  # the kind of variant that is the sample as it came


class Stat(StrEnum):
    """A statistic: whose tokens are averaged (Q, A), and whether they are seen with the other half before them."""

    Q_DIRECT = "Q_direct"
    A_DIRECT = "A_direct"
    Q_CONDITION = "Q_condition"
    A_CONDITION = "A_condition"


class ReplyStatus(StrEnum):
    """How a question to a teacher ended."""

    OK = "ok"  # a complete text
    FAILED = "failed"  # the question's own fault (too long, refused, cut off, empty): asked again only on request
    ERROR = "error"  # the network's or the server's fault: the next sync asks again


class LossStatus(StrEnum):
    """Why a statistic is what it is; every status but `ok` and `imported` goes with a NULL loss_sum."""

    OK = "ok"
    EMPTY = "empty"  # no target text
    TOO_LONG = "too_long"  # no token of the target is left after the cut to max_length
    TOO_SHORT = "too_short"  # no token that could be predicted from one before it
    NOT_FINITE = "not_finite"  # the model's losses are NaN or infinite, or their perplexity is
    IMPORTED = "imported"  # a published mean: loss_sum is the mean and n_tokens is 1
    INVALID = "invalid"  # a published value that cannot be one (0, NaN)


# Mean losses in nats a token: less than nothing is rounding, and of more neither the perplexity nor a ratio of two is surely a double.
LEAST_MEAN_LOSS, MOST_MEAN_LOSS = -1.0, 700.0


def is_mean_loss(value: float) -> bool:
    """Say whether a mean loss is a number, and its perplexity too."""
    return LEAST_MEAN_LOSS <= value <= MOST_MEAN_LOSS  # False for NaN


class Texts(NamedTuple):
    """The three texts of a sample or a variant; `input` is empty where there is none."""

    instruction: str
    input: str
    output: str


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
    """Return the id of the sample with these texts."""
    return content_id("sample", *texts)


def variant_id(sample: str, kind: str, texts: Texts, parent: str | None = None, reply: str | None = None) -> str:
    """Return the id of a variant of `sample`: derived from `parent` by the teacher's `reply`, unless it is the origin."""
    return content_id("variant", sample, str(kind), parent, reply, *texts)


def utc_now() -> str:
    """Return the present moment as ISO 8601 in UTC with microseconds, which sorts as text."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
