"""A teacher behind an OpenAI-compatible server; the only module that imports the openai SDK.

Invariant: one `ask` sends one request (the SDK's own retries are off, since each could be billed), and every way in which
that can end becomes one Reply. The SDK's errors do not leave this module. The body is read here rather than by the SDK,
which returns HTML with status 200 as a text and a body without choices as a success.
It refuses to guess: no price, no cost; no usage in the reply, no token counts.
"""

import asyncio
import json
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
from urllib.parse import urlsplit

import httpx2
import openai

from recycledb.config import TeacherConfig
from recycledb.errors import TeacherError
from recycledb.reflection.teachers import RETRIABLE, Message, Question, Reply, TeacherStop, failed, judged, storable
from recycledb.reflection.teachers.pace import Pace, Ticket
from recycledb.reflection.teachers.prices import find_cost, is_unbegun, usage_cost
from recycledb.schema import ReplyStatus

CONNECT_S = 10.0
OPENAI_URL = "https://api.openai.com/v1"

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
        self._where = _address(config)
        self._key_env = config.api_key_env
        self._fixed = {"model": config.model, **config.request_params}
        self._cost = find_cost(config, self._where)
        self._pace = Pace(self._who, config.concurrency, rpm=config.rpm, tpm=config.tpm, wait_s=config.wait_s)
        self._guess = _Guess(config.request_params)
        self._client = openai.AsyncOpenAI(
            api_key=_api_key(config, self._where),
            base_url=self._where,
            max_retries=0,
            timeout=openai.Timeout(config.timeout_s, connect=min(CONNECT_S, config.timeout_s)),
            http_client=_http_client(config.concurrency),
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
            headers, reply = response.headers, self._read(response.content)
        except openai.APIStatusError as error:
            headers = error.response.headers
            reply, stop = self._refused(error)
        except _UNREACHED as error:
            reply = self._unreached(error)
        duration_ms = round(1000 * (time.monotonic() - started))
        reply = replace(reply, request_id=headers.get("x-request-id"), duration_ms=duration_ms)
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
        cost_usd = 0.0 if _never_connected(error) else None
        return failed("connection", str(cause) or f"it broke off ({type(cause).__name__})", cost_usd=cost_usd)

    def _read(self, body: bytes) -> Reply:
        try:
            data = json.loads(body)
        except ValueError:
            return failed("bad_body", f"status 200, but not JSON: {_excerpt(body)}")
        if not isinstance(data, dict):
            return failed("bad_body", f"status 200, but not a chat completion: {_excerpt(body)}")
        usage = data.get("usage")
        prompt_tokens, completion_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        fields: dict[str, Any] = {
            "served_model": data["model"] if isinstance(data.get("model"), str) else None,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost_usd": usage_cost(self._cost, usage),
        }
        choice = _first_choice(data)
        if choice is None:
            return failed("bad_body", f"status 200, but no choices: {_excerpt(body)}", **fields)
        message = choice["message"]
        finish_reason, refusal = choice.get("finish_reason"), message.get("refusal")
        return judged(
            _content(message.get("content")),
            finish_reason if isinstance(finish_reason, str) else None,
            refusal if isinstance(refusal, str) else None,
            **fields,
        )

    def _refused(self, error: openai.APIStatusError) -> tuple[Reply, str | None]:
        """Return the reply of a status other than 200, and what to tell the user where the run must stop."""
        codes, message = {str(error.code), str(error.type)}, _message(error)
        stop = self._must_stop(error.status_code, codes, error.param, message)
        kind = _error_kind(error.status_code, codes, message, stop is not None)
        retry_after_s = _retry_after(error.response.headers) if kind in RETRIABLE else None
        unbegun = is_unbegun(error.status_code, codes, _NO_QUOTA | _UNKNOWN_MODEL | _UNSUPPORTED)
        cost_usd = 0.0 if unbegun else None
        return failed(kind, f"{error.status_code}: {message}", retry_after_s=retry_after_s, cost_usd=cost_usd), stop

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
        elif reply.status is ReplyStatus.ERROR:
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


def _http_client(concurrency: int) -> httpx2.AsyncClient:
    # With 256 under way, httpx's own pool took twice the processor time of aiohttp's for each request. Idle connections
    # are given up before a server's usual five seconds, lest a question be sent into a closing one.
    limits = httpx2.Limits(
        max_connections=concurrency + 8, max_keepalive_connections=concurrency + 8, keepalive_expiry=4.0
    )
    if find_spec("aiohttp") is None:
        return openai.DefaultAsyncHttpxClient(limits=limits)
    return openai.DefaultAioHttpClient(limits=limits)


def _address(config: TeacherConfig) -> str:
    address = config.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TeacherError(f"teacher {config.name!r}: base_url {address!r} is no address such as {OPENAI_URL}")
    return address


def _api_key(config: TeacherConfig, where: str) -> str:
    key = os.environ.get(config.api_key_env, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise TeacherError(f"teacher {config.name!r}: {config.api_key_env} holds characters that no key has")
    if key:
        return key
    if (urlsplit(where).hostname or "").endswith("openai.com"):
        raise TeacherError(f"teacher {config.name!r} needs a key: set {config.api_key_env} in the environment")
    return "none"  # servers at home ask for no key, but the SDK insists on one


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


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else None


def _never_connected(error: BaseException | None) -> bool:
    """Say whether a request failed before there was a connection, so that it cost nothing."""
    while error is not None and not isinstance(error, _NO_CONNECTION):
        error = error.__cause__ or error.__context__
    return error is not None


def _excerpt(body: bytes) -> str:
    return storable(body[:200].decode("utf-8", "replace"))


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    if not isinstance(message, str):
        message = _excerpt(error.response.content)
    return storable(" ".join(message.split()))[:300]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of Retry-After, which is a number or a date; None where there is none."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None or (seconds := _number(value)) is not None:
        return None if value is None else seconds
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
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
