"""The interface of all teachers: questions, replies, and the `Teacher` protocol.

Invariant: one `ask` is one request and returns one `Reply`, whatever the network or the server does; a teacher never retries
by itself. Retrying is up to the caller, since every try is an attempt row of its own:

    with await teacher.admit(teacher.estimate(messages)) as ticket:   # waits for rate limits, a free slot, a server
        ...                                                           # record the attempt, which is sent next
        reply = await teacher.ask(question, ticket)
        ...                                                           # commit the reply
    # if reply.retriable and attempts are left: sleep pace.retry_delay(number, reply), then start again

Errors that must stop the whole run (no key, unknown model, no quota, server gone) raise TeacherError: `admit` before anything
is sent, `ask` as TeacherStop with the Reply, so that the reply of the attempt can be stored too.
A Reply made by `judged` or `failed` can always be stored: characters that no database holds are replaced, impossible counts
are None, and the original values are kept in `raw`.
This module imports no vendor library.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from recycledb.config import TeacherConfig
from recycledb.errors import TeacherError
from recycledb.reflection.teachers.pace import Ticket
from recycledb.schema import ReplyStatus, Texts

# Kinds of retriable errors: the network's or the server's fault, not the question's.
RETRIABLE = frozenset(
    {
        "rate_limited",
        "server_error",
        "connection",
        "timeout",
        "bad_body",
        "conflict",
        "stopped",
        "stop_refused",
        "stop_at_once",
    }
)

SHORT_MOST = 200  # characters of a name or an id sent by a server
ERROR_MOST = 500
RAW_MOST = 65_536
COUNT_MOST = 2**31 - 1  # tokens of one request: more than any model accepts, and sums stay far below 64 bits

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """One attempt at asking `messages`, the prompt of `step` about the variants in `shown`; attempts count from 1.

    The teacher may end its reply at one of the texts in `stop`: what follows is not read.
    """

    attempt_id: str
    step: str
    messages: Sequence[Message]
    shown: tuple[Texts, ...]
    number: int = 1
    stop: tuple[str, ...] = ()
    prompt_id: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request.

    `error` is "kind: detail". The kinds are those in RETRIABLE; permanent ones due to the question (bad_request, too_long,
    content_filter, refusal, cut_off, empty, no_recorded_reply, out_of_memory); too_large and unreadable (the response cannot
    be read, and a retry would be paid again); unstorable and defect (our own errors). A failed reply may have a text too
    (cut_off, content_filter): it was paid for, so it is kept. `raw` is what fits no other field: a JSON object of such
    values, or the body of a response that is not a chat completion.
    """

    status: ReplyStatus
    text: str | None = None
    finish_reason: str | None = None
    served_model: str | None = None
    request_id: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    error: str | None = None
    duration_ms: int | None = None
    retry_after_s: float | None = None
    raw: str | None = None

    @property
    def kind(self) -> str | None:
        """The error's kind; None if there is no error."""
        return self.error.partition(":")[0] if self.error else None

    @property
    def retriable(self) -> bool:
        """Whether a retry may succeed."""
        return self.status is ReplyStatus.ERROR


class TeacherStop(TeacherError):  # noqa: N818 - named after its effect
    """Raised by `ask` when the run cannot continue; `reply` is the reply to the request that failed."""

    def __init__(self, message: str, reply: Reply) -> None:
        super().__init__(message)
        self.reply = reply


class Teacher(Protocol):
    """A chat model that answers questions, one request for each."""

    @property
    def concurrency(self) -> int:
        """How many questions may be in flight now; it adapts to the server's limits."""

    def estimate(self, messages: Sequence[Message]) -> int:
        """Return an estimate of the tokens of asking `messages`, prompt and completion together."""

    async def admit(self, tokens: int = 0) -> Ticket:
        """Wait until one more question of about `tokens` may be sent; TeacherError if waiting is pointless."""

    async def ask(self, question: Question, ticket: Ticket | None = None) -> Reply:
        """Send one request and return its reply; TeacherStop if the whole run must stop."""

    async def close(self) -> None:
        """Close connections and threads."""


def failed(kind: str, detail: str, **fields: Any) -> Reply:
    """Return the Reply for an error: `error` if it is retriable, `failed` if it is permanent."""
    status = ReplyStatus.ERROR if kind in RETRIABLE else ReplyStatus.FAILED
    return Reply(status=status, error=error_line(kind, detail), **fitted(fields))


def error_line(kind: str, detail: str) -> str:
    """Return an error in the form stored: one line of bounded length."""
    return f"{storable(kind)}: {' '.join(storable(detail).split())}"[:ERROR_MOST]


def judged(text: str | None, finish_reason: object, refusal: str | None = None, **fields: Any) -> Reply:
    """Return the Reply for a text received: ok if it is complete, else failed with the reason."""
    fields = {**fields, "text": text, "finish_reason": finish_reason}
    if finish_reason == "length":
        return failed(
            "cut_off", "the answer reached the token limit; raise max_tokens in the teacher's params", **fields
        )
    if finish_reason == "content_filter":
        return failed("content_filter", "the server's filter stopped the answer", **fields)
    if refusal:
        return failed("refusal", refusal, **fields)
    if not text or not text.strip():
        return failed("empty", "the answer has no text", **fields)
    return Reply(status=ReplyStatus.OK, **fitted(fields))


def fitted(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a Reply from the values received: what no column can hold is None or truncated, and kept in `raw`."""
    fields, odd = dict(said), {}
    if fields.get("text") is not None:
        fields["text"] = storable(fields["text"])
    for name in ("finish_reason", "served_model", "request_id"):
        if (value := fields.get(name)) is not None:
            fields[name] = storable(value)[:SHORT_MOST] if isinstance(value, str) else None
            if not isinstance(value, str) or len(value) > SHORT_MOST:
                odd[name] = value
    for name in ("prompt_tokens", "completion_tokens"):
        if (value := fields.get(name)) is not None and not is_count(value):
            fields[name], odd[name] = None, value
    cost = fields.get("cost_usd")
    if cost is not None and not (math.isfinite(cost) and cost >= 0):
        fields["cost_usd"], odd["cost_usd"] = None, cost
    raw = fields.get("raw") or (_as_said(odd) if odd else None)
    fields["raw"] = storable(raw)[:RAW_MOST] if raw else None
    return fields


def is_count(value: object) -> TypeGuard[int]:
    """Return whether `value` can be a number of tokens: an integer (and not JSON's true) of a plausible size."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= COUNT_MOST


def _as_said(odd: Mapping[str, Any]) -> str:
    """Return odd values as one JSON object in ASCII, which keeps texts exactly, surrogates included."""
    most = RAW_MOST // (len(odd) + 1)
    return "{" + ", ".join(f"{json.dumps(name)}: {_as_json(value, most)}" for name, value in odd.items()) + "}"


def _as_json(value: object, most: int) -> str:
    try:
        told = json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):  # NaN, an integer of thousands of digits, too deep nesting
        told = json.dumps(
            str(value) if isinstance(value, float) else f"a {type(value).__name__} that cannot be written"
        )
    return told if len(told) <= most else json.dumps(told[: most // 2 - 1])


def storable(text: str) -> str:
    """Return `text` with the characters that no database can hold (lone surrogates, NUL) replaced by U+FFFD."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", "\ufffd")


def missing_key(config: TeacherConfig) -> str | None:
    """Return what is wrong where the configuration names a variable for the key that is not set; None otherwise."""
    named = config.provider == "openai" and "api_key_env" in config.model_fields_set
    if not named or os.environ.get(config.api_key_env, "").strip():
        return None
    return (
        f"teacher {config.name!r}: api_key_env names {config.api_key_env}, which is not set: export it, "
        f"or take api_key_env out of [teachers.{config.name}] if the server needs no key"
    )
