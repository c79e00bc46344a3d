"""What every teacher keeps to: what is asked, and what comes back, whoever answers.

Invariant: one `ask` is one request and gives one `Reply`, whatever the network or the server does; nothing here asks twice
by itself. Trying again is the caller's decision, since every try is an attempt row of its own:

    with await teacher.admit(teacher.estimate(messages)) as ticket:   # waits for rate limits, a free place, a server
        ...                                                           # record the attempt, now that it will be sent
        reply = await teacher.ask(question, ticket)
        ...                                                           # commit the reply
    # if reply.retriable and there are attempts left: sleep pace.retry_delay(number, reply), then from the top

What must stop the whole run (no key, unknown model, no quota, server gone) raises TeacherError: `admit` before anything
is sent, `ask` with the Reply that says so, as TeacherStop, so that the attempt's row can be closed too.
Whatever a server, a model or a recording said, a Reply made by `judged` or `failed` can be stored: texts without what no
database holds, counts that can be counts, and the rest as it was said in `raw`.
This module imports no vendor library.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from recycledb.errors import TeacherError
from recycledb.reflection.teachers.pace import Ticket
from recycledb.schema import ReplyStatus, Texts

# Errors that may be gone at the next try: the network's or the server's fault, not the question's.
RETRIABLE = frozenset({"rate_limited", "server_error", "connection", "timeout", "bad_body", "conflict", "stopped"})

SHORT_MOST = 200  # characters of a name or an id that a server gives
ERROR_MOST = 500
RAW_MOST = 65_536
COUNT_MOST = 2**31 - 1  # tokens of one request: more than any model takes, and what sums of are far below 64 bits

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """One attempt at asking `messages`, the prompt of `step` about the variants in `shown`; attempts count from 1."""

    attempt_id: str
    step: str
    messages: Sequence[Message]
    shown: tuple[Texts, ...]
    number: int = 1


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request.

    `error` is "kind: detail", with a kind of a fixed vocabulary: those in RETRIABLE, and of the question itself
    bad_request, too_long, content_filter, refusal, cut_off, empty, no_recorded_reply, out_of_memory; too_large and
    unreadable (what came back cannot be read, and would be paid for again), unstorable and defect (we failed at it). A
    failed reply may have a text all the same (cut_off, content_filter): it was paid for, so it is kept. `raw` is what was
    said that fits no other field: a JSON object of such fields, or the body of an answer that is no chat completion.
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
        """The error's kind, None where there is no error."""
        return self.error.partition(":")[0] if self.error else None

    @property
    def retriable(self) -> bool:
        """Whether another try may go better."""
        return self.status is ReplyStatus.ERROR


class TeacherStop(TeacherError):  # noqa: N818 - named for what it does
    """Raised by `ask` when the run cannot go on; `reply` is what came back for the request that showed it."""

    def __init__(self, message: str, reply: Reply) -> None:
        super().__init__(message)
        self.reply = reply


class Teacher(Protocol):
    """A chat model that answers questions, one request each."""

    @property
    def concurrency(self) -> int:
        """How many questions may be under way now; it falls and rises with what the server bears."""

    def estimate(self, messages: Sequence[Message]) -> int:
        """Return about how many tokens asking `messages` will cost, prompt and answer together."""

    async def admit(self, tokens: int = 0) -> Ticket:
        """Wait until one more question of about `tokens` may be sent; TeacherError when there is no use in waiting."""

    async def ask(self, question: Question, ticket: Ticket | None = None) -> Reply:
        """Send one request and return what came of it; TeacherStop when the whole run must stop."""

    async def close(self) -> None:
        """Give back connections and threads."""


def failed(kind: str, detail: str, **fields: Any) -> Reply:
    """Return the Reply of an error: `error` where another try may go better, `failed` where the question is at fault."""
    status = ReplyStatus.ERROR if kind in RETRIABLE else ReplyStatus.FAILED
    return Reply(status=status, error=error_line(kind, detail), **fitted(fields))


def error_line(kind: str, detail: str) -> str:
    """Return an error as it is stored: one line of bounded length."""
    return f"{storable(kind)}: {' '.join(storable(detail).split())}"[:ERROR_MOST]


def judged(text: str | None, finish_reason: object, refusal: str | None = None, **fields: Any) -> Reply:
    """Return the Reply of a text that arrived: ok if it is a complete answer, else failed with the reason."""
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
    """Return the fields of a Reply from what was said: what no column can hold is None, or cut, and kept in `raw`."""
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
    """Say whether `value` can be a count of tokens: a whole number, which JSON's true is not, and of a size that occurs."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= COUNT_MOST


def _as_said(odd: Mapping[str, Any]) -> str:
    """Return odd fields as one JSON object in ASCII, in which every text, surrogates among it, is as it was said."""
    most = RAW_MOST // (len(odd) + 1)
    return "{" + ", ".join(f"{json.dumps(name)}: {_as_json(value, most)}" for name, value in odd.items()) + "}"


def _as_json(value: object, most: int) -> str:
    try:
        told = json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):  # NaN, a number of thousands of digits, too deep a nesting
        told = json.dumps(
            str(value) if isinstance(value, float) else f"a {type(value).__name__} that cannot be written"
        )
    return told if len(told) <= most else json.dumps(told[: most // 2 - 1])


def storable(text: str) -> str:
    """Return `text` with what no database can hold (lone surrogates, NUL) as U+FFFD, so that the rest is not lost."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", "\ufffd")
