"""A teacher behind an OpenAI-compatible server, asked by the openai SDK.

Invariant: one `ask` sends one request (the SDK's own retries are off, since each could be billed), and every way in which
that can end becomes one Reply. The SDK's errors do not leave this module. The body is read here rather than by the SDK,
which returns HTML with status 200 as a text and a body without choices as a success. Whatever one body holds costs no other reply.
It refuses to guess: no price, no cost; no usage in the reply, no token counts.
"""

import asyncio
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import httpx2
import openai

from recycledb.config import TeacherConfig
from recycledb.errors import without_password
from recycledb.reflection.teachers import (
    RETRIABLE,
    SHORT_MOST,
    Message,
    Question,
    Reply,
    TeacherStop,
    failed,
    is_count,
    judged,
    storable,
)  # fmt: skip
from recycledb.reflection.teachers.pace import Pace, Ticket
from recycledb.reflection.teachers.prices import find_cost, is_unbegun, usage_cost
from recycledb.reflection.teachers.wire import (
    Mask,
    Refused,
    TooLarge,
    async_client,
    body_of,
    find_access,
    parsed,
    pointed_to,
)  # fmt: skip
from recycledb.schema import ReplyStatus

CONNECT_S = 10.0
BODY_MOST = 65_536  # letters of a body that are kept where it is no answer

# How a request may end without a status: the SDK's errors, and what its transports raise past it.
_UNREACHED: tuple[type[Exception], ...] = (
    TimeoutError,
    OSError,
    openai.APIConnectionError,
    httpx2.HTTPError,
    *([import_module("aiohttp").ClientError] if find_spec("aiohttp") else []),
)

# There was no connection to send anything over. httpx's own ConnectTimeout is not among them: the SDK's aiohttp transport raises it for
# connections that broke later, too.
_NO_CONNECTION: tuple[type[Exception], ...] = (
    httpx2.ConnectError,
    *([import_module("aiohttp").ClientConnectorError] if find_spec("aiohttp") else []),
)

_NO_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_UNKNOWN_MODEL = frozenset({"model_not_found", "invalid_model"})
_UNSUPPORTED = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})
_TOO_LONG = frozenset({"context_length_exceeded", "string_above_max_length", "request_too_large"})
_KINDS = {408: "timeout", 409: "conflict", 429: "rate_limited"}
# Servers other than OpenAI's say it in words only.
_TOO_LONG_WORDS = re.compile(r"context (?:length|window|size)|maximum (?:context|model) length|too many tokens", re.I)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class ChatTeacher:
    """A chat model at `config.base_url`, else $OPENAI_BASE_URL, else OpenAI."""

    def __init__(self, config: TeacherConfig) -> None:
        self._config, self._who = config, f"teacher {config.name!r}"
        access = find_access(config)
        self._where, self._mask = access.address, access.mask
        self._key_env = config.api_key_env
        self._fixed = {"model": config.model, **config.request_params}
        self._cost = find_cost(config, self._where)
        self._pace = Pace(self._who, config.concurrency, rpm=config.rpm, tpm=config.tpm, wait_s=config.wait_s)
        self._guess = _Guess(config.request_params)
        self._client = openai.AsyncOpenAI(
            api_key=access.key,
            base_url=self._where,
            default_headers=access.headers,
            max_retries=0,
            timeout=openai.Timeout(config.timeout_s, connect=min(CONNECT_S, config.timeout_s)),
            http_client=async_client(config.concurrency, config.max_reply_mb),
        )

    @property
    def concurrency(self) -> int:
        """How many questions may be under way now."""
        return self._pace.concurrency

    def estimate(self, messages: Sequence[Message]) -> int:
        """Return about how many tokens asking `messages` will cost, going by what earlier answers took."""
        return self._guess.tokens(messages)

    async def admit(self, tokens: int = 0) -> Ticket:
        """Wait until one more question of about `tokens` may be sent."""
        return await self._pace.admit(tokens)

    async def ask(self, question: Question, ticket: Ticket | None = None) -> Reply:
        """Send one request and return what came of it; TeacherStop when the whole run must stop."""
        sent_at, started = self._pace.now(), time.monotonic()
        headers: Mapping[str, str] = {}
        stop: str | None = None
        try:
            # The SDK's timeout is for each read: a body that trickles in would never meet it.
            async with asyncio.timeout(self._config.timeout_s):
                response = await self._post(question.messages)
            headers = response.headers
            reply, stop = self._understood(response)
        except Refused as error:
            headers = error.response.headers
            reply, stop = self._understood(error.response)
        except TooLarge as error:
            headers, reply = error.headers, failed("too_large", str(error))
        except _UNREACHED as error:
            reply = self._unreached(error)
        duration_ms = round(1000 * (time.monotonic() - started))
        reply = replace(reply, request_id=_request_id(headers, self._mask), duration_ms=duration_ms)
        self._note(question, reply, headers, sent_at, ticket)
        if stop:
            raise TeacherStop(f"{self._who} at {self._where}: {stop}", reply)
        return reply

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _post(self, messages: Sequence[Message]) -> httpx2.Response:
        # The SDK's `post` for the raw response: it spares the model of the reply, which we read ourselves, and costs 0.6
        # of the processor time of `chat.completions.create`.
        body = {**self._fixed, "messages": [dict(message) for message in messages]}
        return await self._client.post("/chat/completions", cast_to=httpx2.Response, body=body)

    def _unreached(self, error: BaseException) -> Reply:
        # The SDK and its transports call some broken connections time-outs: the first cause says which it was.
        cause = error
        while (earlier := cause.__cause__ or cause.__context__) is not None:
            cause = earlier
            if isinstance(cause, TimeoutError):
                break
        if isinstance(cause, TimeoutError | asyncio.CancelledError):  # our own time-out begins as a cancellation
            return failed("timeout", f"no complete answer within {self._config.timeout_s:g} s")
        said = self._mask(without_password(_cause_told(cause)))
        return failed("connection", f"{said} ({self._where})", cost_usd=0.0 if _never_connected(error) else None)

    def _understood(self, response: httpx2.Response) -> tuple[Reply, str | None]:
        """Return the reply that a response is, and what to tell the user where the run must stop."""
        body = body_of(response)
        try:
            if response.is_success:
                return self._masked(self._read(body)), None
            return self._refused(response.status_code, response.headers, body)
        except MemoryError:
            raise
        except Exception as error:  # whatever one body makes of our code, the other replies must not be lost by it
            return self._unreadable(f"{type(error).__name__}: {error}", body), None

    def _unreadable(self, why: str, body: bytes, **fields: Any) -> Reply:
        return failed("unreadable", self._mask(why), raw=self._body(body), **fields)

    def _read(self, body: bytes) -> Reply:
        """Return the reply of a body that came with success."""
        try:
            data = parsed(body)
        except ValueError:
            return failed("bad_body", f"status 200, but not JSON: {self._excerpt(body)}", raw=self._body(body))
        return self._judge(data, body)

    def _judge(self, data: object, said: bytes) -> Reply:
        """Return the reply of a chat completion; `said` is what is kept where it is none."""
        if not isinstance(data, dict):
            detail = f"status 200, but not a chat completion: {self._excerpt(said)}"
            return failed("bad_body", detail, raw=self._body(said))
        usage = data.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        prompt_tokens, completion_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        fields: dict[str, Any] = {
            "served_model": self._shown(data.get("model")),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost_usd": usage_cost(self._cost, usage),
        }
        choice = _first_choice(data)
        if choice is None:
            return failed(
                "bad_body", f"status 200, but no choices: {self._excerpt(said)}", raw=self._body(said), **fields
            )
        content, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        text = _content(content)
        if text is None and content is not None:
            fields["raw"] = self._body(said)
        return judged(
            None if text is None else self._mask.in_answer(text),
            self._shown(choice.get("finish_reason")),
            self._mask(refusal) if isinstance(refusal, str) else None,
            **fields,
        )

    def _masked(self, reply: Reply) -> Reply:
        return replace(reply, raw=self._mask(reply.raw)) if reply.raw else reply

    def _shown(self, value: object) -> object:
        return self._mask(value) if isinstance(value, str) else value

    def _body(self, body: bytes) -> str:
        """Return a body as it is kept where it is no answer. Masked before it is cut, so that no half of a key is left."""
        return self._mask(body.decode("utf-8", "replace"))[:BODY_MOST]

    def _excerpt(self, body: bytes) -> str:
        return self._body(body)[:200]

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes) -> tuple[Reply, str | None]:
        """Return the reply of a status other than success, and what to tell the user where the run must stop."""
        said = _said(body)
        codes = {value for name in ("code", "type") if isinstance(value := said.get(name), str)}
        message = said.get("message")
        message = self._mask(message if isinstance(message, str) else self._excerpt(body))
        message = " ".join(without_password(message).split())[:300]
        param = said.get("param")
        stop = self._must_stop(status, codes, self._mask(param)[:100] if isinstance(param, str) else None, message)
        if 300 <= status < 400:
            message = stop = self._redirected(status, headers)
        kind = _error_kind(status, codes, message, stop is not None)
        retry_after_s = _retry_after(headers) if kind in RETRIABLE else None
        cost_usd = 0.0 if is_unbegun(status, codes, _NO_QUOTA | _UNKNOWN_MODEL | _UNSUPPORTED) else None
        reply = failed(kind, f"{status}: {message}", retry_after_s=retry_after_s, cost_usd=cost_usd)
        return reply, storable(stop) if stop else None

    def _redirected(self, status: int, headers: Mapping[str, str]) -> str:
        location = headers.get("location")
        if not location:
            return f"it answers {status}, which is no answer to a question; correct base_url"
        target = self._mask(pointed_to(self._where, location))
        return f"it redirects ({status}) to {target}, and redirects are not followed; correct base_url"

    def _must_stop(self, status: int, codes: set[str], param: str | None, message: str) -> str | None:
        model, said = self._config.model, f"({status}: {message})"
        if status == 401:
            return f"the key in {self._key_env} was not accepted {said}"
        if status == 403:
            return f"the key in {self._key_env} may not use model {model!r} {said}"
        if status == 402 or codes & _NO_QUOTA:
            return f"there is no quota or credit left {said}; top it up, then run sync again"
        if status == 404 or codes & _UNKNOWN_MODEL:
            return f"no model {model!r} there, or no such address {said}; correct model or base_url"
        if codes & _UNSUPPORTED:
            return (
                f"the model does not take {param or 'a parameter'} as configured {said}; set it in the teacher's params"
            )
        return None

    def _note(
        self, question: Question, reply: Reply, headers: Mapping[str, str], sent_at: float, ticket: Ticket | None
    ) -> None:
        """Tell the pace what came back."""
        if reply.kind == "rate_limited":
            self._pace.limited(sent_at, reply.retry_after_s, reply.error or "")
        elif reply.status is ReplyStatus.ERROR or reply.kind == "unreadable":  # a server whose every answer is, is down
            self._pace.failed(sent_at, reply.error or "")
            self._pace.pause(reply.retry_after_s or 0.0)
        else:
            self._pace.answered()
        tokens = (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
        if tokens:
            self._guess.learn(question.messages, reply)
            if ticket:
                ticket.spent(tokens)
        for budget, needed in (("requests", 1), ("tokens", max(1, tokens))):
            left = _number(headers.get(f"x-ratelimit-remaining-{budget}"))
            reset = _duration(headers.get(f"x-ratelimit-reset-{budget}"))
            if left is not None and reset is not None and left < needed:
                self._pace.pause(reset)


class _Guess:
    """What a question will cost in tokens: by its length and the teacher's answers so far; at first, the most allowed."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        most = params.get("max_completion_tokens") or params.get("max_tokens")
        self._answer = float(most) if isinstance(most, int | float) else 1024.0
        self._letters = 4.0  # a token

    def tokens(self, messages: Sequence[Message]) -> int:
        return round(_length(messages) / self._letters + self._answer)

    def learn(self, messages: Sequence[Message], reply: Reply) -> None:
        if reply.completion_tokens:
            self._answer += (reply.completion_tokens - self._answer) / 16
        if reply.prompt_tokens:
            letters = _length(messages) / reply.prompt_tokens
            self._letters = max(0.25, self._letters + (letters - self._letters) / 16)


def _length(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def _error_kind(status: int, codes: set[str], message: str, stop: bool) -> str:
    if stop:
        return "stopped"
    if status in _KINDS or status >= 500:
        return _KINDS.get(status, "server_error")
    if "content_filter" in codes:
        return "content_filter"
    if status == 413 or codes & _TOO_LONG or _TOO_LONG_WORDS.search(message):
        return "too_long"
    return "bad_request"


def _first_choice(data: Mapping[str, Any]) -> dict[str, Any] | None:
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    return choices[0] if isinstance(choices[0].get("message"), dict) else None


def _content(content: object) -> str | None:
    if isinstance(content, list):  # some servers answer in parts
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else None


def _cached(usage: Mapping[str, Any]) -> int:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return cached if is_count(cached) else 0


def _said(body: bytes) -> Mapping[str, Any]:
    """Return the error object of a body, however it is wrapped; empty where there is none."""
    try:
        data = parsed(body)
    except ValueError:
        return {}
    inner = data.get("error", data) if isinstance(data, dict) else None
    if isinstance(inner, str):
        return {"message": inner}
    return inner if isinstance(inner, dict) else {}


def _never_connected(error: BaseException | None) -> bool:
    """Say whether a request failed before there was a connection, so that it cost nothing."""
    while error is not None and not isinstance(error, _NO_CONNECTION):
        error = error.__cause__ or error.__context__
    return error is not None


def _request_id(headers: Mapping[str, str], mask: Mask) -> str | None:
    found = headers.get("x-request-id")
    return None if found is None else storable(mask(found))[:SHORT_MOST]


def _cause_told(cause: BaseException) -> str:
    """Return why a connection failed, in the system's words rather than in asyncio's."""
    if (isinstance(cause, ConnectionError) or type(cause) is OSError) and cause.errno:
        return os.strerror(cause.errno)
    return getattr(cause, "strerror", None) or str(cause) or f"it broke off ({type(cause).__name__})"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of Retry-After, which is a number or a date; None where there is none."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None or (seconds := _number(value)) is not None:
        return None if value is None else seconds
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < float("inf") else None


def _duration(value: str | None) -> float | None:
    """Return the seconds of `1m30.5s`, `20ms` or a plain number; None where it is none of these."""
    if value is None:
        return None
    if (number := _number(value)) is not None:
        return number
    parts = _DURATION.findall(value)
    return sum(float(amount) * _SECONDS[unit] for amount, unit in parts) if parts else None
