"""A teacher at an OpenAI-compatible server, asked through the openai SDK.

Invariant: one `ask` sends one request (the SDK's own retries are off, since each could be billed), and every outcome becomes
one Reply. The SDK's errors do not leave this module. The body is parsed here instead of by the SDK, which returns HTML with
status 200 as a text and a body without choices as a success. A malformed body affects no other reply.
Nothing is guessed: without a price there is no cost; without usage in the reply there are no token counts.
"""

import asyncio
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import httpx2
import openai

from recycledb.config import TeacherConfig
from recycledb.errors import without_password
from recycledb.reflection.teachers.bodies import Bodies, number
from recycledb.reflection.teachers.contract import (
    SHORT_MOST,
    Message,
    Question,
    Reply,
    TeacherStop,
    failed,
    storable,
)  # fmt: skip
from recycledb.reflection.teachers.pace import Pace, Ticket
from recycledb.reflection.teachers.wire import (
    CONNECT_S,
    Mask,
    Refused,
    TooLarge,
    async_client,
    body_of,
    find_access,
)  # fmt: skip
from recycledb.schema import ReplyStatus

# Errors without an HTTP status: the SDK's, and those that its transports raise unwrapped.
_UNREACHED: tuple[type[Exception], ...] = (
    TimeoutError,
    OSError,
    openai.APIConnectionError,
    httpx2.HTTPError,
    *([import_module("aiohttp").ClientError] if find_spec("aiohttp") else []),
)

# Errors before there was a connection. httpx's own ConnectTimeout is not one of them: the SDK's aiohttp transport raises it for
# connections that broke later, too.
_NO_CONNECTION: tuple[type[Exception], ...] = (
    httpx2.ConnectError,
    *([import_module("aiohttp").ClientConnectorError] if find_spec("aiohttp") else []),
)

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_ASK_WITHOUT_STOP = ("stop_refused", "stop_at_once")  # kinds of errors: the server is well
_NAMES_STOP = re.compile(r"\bstop\b", re.I)  # in a server's message that it does not take the parameter
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class ChatTeacher:
    """A chat model at `config.base_url`, else $OPENAI_BASE_URL, else OpenAI."""

    def __init__(self, config: TeacherConfig) -> None:
        self._config, self._who = config, f"teacher {config.name!r}"
        access = find_access(config)
        self._where, self._mask, self._bodies = access.address, access.mask, Bodies(config, access)
        self._fixed = {"model": config.model, **config.sent_params}
        self._pace = Pace(self._who, config.concurrency, rpm=config.rpm, tpm=config.tpm, wait_s=config.wait_s)
        self._guess = _Guess(config.request_params)
        self._takes_stop = "stop" not in config.sent_params  # the user's own goes before a question's
        self._blank: set[int] = set()  # hashes of the questions whose reply began with a text to stop at
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
        """How many questions may be in flight now."""
        return self._pace.concurrency

    def estimate(self, messages: Sequence[Message]) -> int:
        """Return an estimate of the tokens of asking `messages`, from the token counts of earlier replies."""
        return self._guess.tokens(messages)

    async def admit(self, tokens: int = 0) -> Ticket:
        """Wait until one more question of about `tokens` may be sent."""
        return await self._pace.admit(tokens)

    async def ask(self, question: Question, ticket: Ticket | None = None) -> Reply:
        """Send one request and return its reply; TeacherStop if the whole run must stop."""
        sent_at, started = self._pace.now(), time.monotonic()
        stop_at = self._stop_of(question)
        headers: Mapping[str, str] = {}
        stop: str | None = None
        try:
            # The SDK's timeout applies to each read, so a body that trickles in would never exceed it.
            async with asyncio.timeout(self._config.timeout_s):
                response = await self._post(question.messages, stop_at)
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
        if stop_at and (other := self._without_stop(question, reply)):
            reply, stop = other, None
        reply = replace(reply, request_id=_request_id(headers, self._mask), duration_ms=duration_ms)
        self._note(question, reply, headers, sent_at, ticket)
        if stop:
            raise TeacherStop(f"{self._who} at {self._where}: {stop}", reply)
        return reply

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _stop_of(self, question: Question) -> list[str]:
        """Return the texts to stop at that a request is sent with."""
        return list(question.stop) if self._takes_stop and _hash(question.messages) not in self._blank else []

    def _without_stop(self, question: Question, reply: Reply) -> Reply | None:
        """Return a retriable reply where a question must be asked again without `stop`: refused, or nothing came before it."""
        fields = {
            name: getattr(reply, name)
            for name in ("prompt_tokens", "completion_tokens", "cost_usd", "served_model", "raw")
        }
        if reply.kind == "empty" and reply.finish_reason in (None, "stop"):
            self._blank.add(_hash(question.messages))
            detail = "the answer began with a line break, and nothing came before it; asked again without stop"
            return failed("stop_at_once", detail, retry_after_s=0.0, finish_reason=reply.finish_reason, **fields)
        if reply.kind in ("bad_request", "stopped") and _NAMES_STOP.search(reply.error or ""):
            self._takes_stop = False
            return failed("stop_refused", (reply.error or "").partition(": ")[2], retry_after_s=0.0, **fields)
        return None

    async def _post(self, messages: Sequence[Message], stop_at: Sequence[str]) -> httpx2.Response:
        # The SDK's `post` with the raw response: it builds no reply model, since we parse the body ourselves, and takes 0.6
        # of the CPU time of `chat.completions.create`.
        stop = {"stop": stop_at} if stop_at else {}
        body = {**self._fixed, **stop, "messages": [dict(message) for message in messages]}
        return await self._client.post("/chat/completions", cast_to=httpx2.Response, body=body)

    def _unreached(self, error: BaseException) -> Reply:
        # The SDK and its transports report some broken connections as timeouts: the first cause tells them apart.
        cause = error
        while (earlier := cause.__cause__ or cause.__context__) is not None:
            cause = earlier
            if isinstance(cause, TimeoutError):
                break
        if isinstance(cause, TimeoutError | asyncio.CancelledError):  # our own timeout starts as a cancellation
            return failed("timeout", f"no complete answer within {self._config.timeout_s:g} s")
        said = self._mask(without_password(_cause_told(cause)))
        return failed("connection", f"{said} ({self._where})", cost_usd=0.0 if _never_connected(error) else None)

    def _understood(self, response: httpx2.Response) -> tuple[Reply, str | None]:
        """Return the reply of a response, and the message for the user if the run must stop."""
        body = body_of(response)
        try:
            if response.is_success:
                return self._bodies.masked(self._bodies.read(body)), None
            return self._bodies.refused(response.status_code, response.headers, body)
        except MemoryError:
            raise
        except Exception as error:  # a bug of ours that one body triggers must not lose the other replies
            return self._bodies.unreadable(f"{type(error).__name__}: {error}", body), None

    def _note(
        self, question: Question, reply: Reply, headers: Mapping[str, str], sent_at: float, ticket: Ticket | None
    ) -> None:
        """Report the outcome to the pace."""
        if reply.kind == "rate_limited":
            self._pace.limited(sent_at, reply.retry_after_s, reply.error or "")
        elif (
            reply.status is ReplyStatus.ERROR and reply.kind not in _ASK_WITHOUT_STOP
        ) or reply.kind == "unreadable":  # a server that sends only these is down
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
            left = number(headers.get(f"x-ratelimit-remaining-{budget}"))
            reset = _duration(headers.get(f"x-ratelimit-reset-{budget}"))
            if left is not None and reset is not None and left < needed:
                self._pace.pause(reset)


class _Guess:
    """An estimate of a question's tokens, from its length and the replies so far; at first, the most allowed."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        most = params.get("max_completion_tokens") or params.get("max_tokens")
        self._answer = float(most) if isinstance(most, int | float) else 1024.0
        self._letters = 4.0  # per token

    def tokens(self, messages: Sequence[Message]) -> int:
        return round(_length(messages) / self._letters + self._answer)

    def learn(self, messages: Sequence[Message], reply: Reply) -> None:
        if reply.completion_tokens:
            self._answer += (reply.completion_tokens - self._answer) / 16
        if reply.prompt_tokens:
            letters = _length(messages) / reply.prompt_tokens
            self._letters = max(0.25, self._letters + (letters - self._letters) / 16)


def _hash(messages: Sequence[Message]) -> int:
    return hash(tuple(message["content"] for message in messages))


def _length(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def _never_connected(error: BaseException | None) -> bool:
    """Return whether a request failed before there was a connection, so that it cost nothing."""
    while error is not None and not isinstance(error, _NO_CONNECTION):
        error = error.__cause__ or error.__context__
    return error is not None


def _request_id(headers: Mapping[str, str], mask: Mask) -> str | None:
    found = headers.get("x-request-id")
    return None if found is None else storable(mask(found))[:SHORT_MOST]


def _cause_told(cause: BaseException) -> str:
    """Return why a connection failed: the system's message instead of asyncio's."""
    if (isinstance(cause, ConnectionError) or type(cause) is OSError) and cause.errno:
        return os.strerror(cause.errno)
    return getattr(cause, "strerror", None) or str(cause) or f"it broke off ({type(cause).__name__})"


def _duration(value: str | None) -> float | None:
    """Return the seconds of `1m30.5s`, `20ms` or a plain number; None for anything else."""
    if value is None:
        return None
    if (seconds := number(value)) is not None:
        return seconds
    parts = _DURATION.findall(value)
    return sum(float(amount) * _SECONDS[unit] for amount, unit in parts) if parts else None
