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
from typing import Any
from urllib.parse import urlsplit

import openai

from recycledb.config import TeacherConfig
from recycledb.errors import TeacherError
from recycledb.reflection.teachers import RETRIABLE, Message, Question, Reply, TeacherStop, failed, judged, storable
from recycledb.reflection.teachers.pace import Pace, Ticket
from recycledb.schema import ReplyStatus

CONNECT_S = 10.0
_OPENAI = "https://api.openai.com/v1"

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
        self._config = config
        self._who = f"teacher {config.name!r}"
        self._pace = Pace(self._who, config.concurrency, rpm=config.rpm, tpm=config.tpm, wait_s=config.wait_s)
        base_url = config.base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._where = base_url or _OPENAI
        self._client = openai.AsyncOpenAI(
            api_key=_api_key(config, self._where),
            base_url=base_url,
            max_retries=0,
            timeout=openai.Timeout(config.timeout_s, connect=min(CONNECT_S, config.timeout_s)),
        )

    @property
    def concurrency(self) -> int:
        """How many questions may be under way now."""
        return self._pace.concurrency

    def estimate(self, messages: Sequence[Message]) -> int:
        """Return about how many tokens asking `messages` will cost."""
        return sum(len(message["content"]) for message in messages) // 4

    async def admit(self, tokens: int = 0) -> Ticket:
        """Wait until one more question of about `tokens` may be sent."""
        return await self._pace.admit(tokens)

    async def ask(self, question: Question, ticket: Ticket | None = None) -> Reply:
        """Send one request and return what came of it; TeacherStop when the whole run must stop."""
        sent_at = self._pace.now()
        started = time.monotonic()
        headers: Mapping[str, str] = {}
        stop: str | None = None
        try:
            # The SDK's timeout is for each read: a body that trickles in would never meet it.
            async with asyncio.timeout(self._config.timeout_s):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self._config.model,
                    messages=list(question.messages),  # type: ignore[arg-type] # plain dictionaries are its wire form
                    extra_body=self._config.request_params,
                )
            headers = raw.headers
            reply = self._read(raw.http_response.content)
        except (TimeoutError, openai.APITimeoutError):
            reply = failed("timeout", f"no complete answer within {self._config.timeout_s:g} s")
        except openai.APIStatusError as error:
            headers = error.response.headers
            reply, stop = self._refused(error)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reply = failed("connection", str(cause) or f"it broke off ({type(cause).__name__})")
        reply = replace(
            reply, request_id=headers.get("x-request-id"), duration_ms=round(1000 * (time.monotonic() - started))
        )
        self._note(reply, headers, sent_at, ticket)
        if stop:
            raise TeacherStop(f"{self._who} at {self._where}: {stop}", reply)
        return reply

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _read(self, body: bytes) -> Reply:
        try:
            data = json.loads(body)
        except ValueError:
            return failed("bad_body", f"status 200, but not JSON: {_excerpt(body)}")
        if not isinstance(data, dict):
            return failed("bad_body", f"status 200, but not a chat completion: {_excerpt(body)}")
        usage: Any = data.get("usage")
        fields: dict[str, Any] = {
            "served_model": data["model"] if isinstance(data.get("model"), str) else None,
            "prompt_tokens": _count(usage, "prompt_tokens"),
            "completion_tokens": _count(usage, "completion_tokens"),
        }
        fields["cost_usd"] = self._cost(fields["prompt_tokens"], fields["completion_tokens"])
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

    def _cost(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        price_in, price_out = self._config.price_in, self._config.price_out
        if price_in is None or price_out is None or prompt_tokens is None or completion_tokens is None:
            return None
        return (prompt_tokens * price_in + completion_tokens * price_out) / 1e6

    def _refused(self, error: openai.APIStatusError) -> tuple[Reply, str | None]:
        """Return the reply of a status other than 200, and what to tell the user where the run must stop."""
        codes, message = {str(error.code), str(error.type)}, _message(error)
        stop = self._must_stop(error.status_code, codes, error.param, message)
        kind = _error_kind(error.status_code, codes, message, stop is not None)
        retry_after_s = _retry_after(error.response.headers) if kind in RETRIABLE else None
        return failed(kind, f"{error.status_code}: {message}", retry_after_s=retry_after_s), stop

    def _must_stop(self, status: int, codes: set[str], param: str | None, message: str) -> str | None:
        model, said = self._config.model, f"({status}: {message})"
        if status == 401:
            return f"the key in {self._config.api_key_env} was not accepted {said}"
        if status == 403:
            return f"the key in {self._config.api_key_env} may not use model {model!r} {said}"
        if status == 402 or codes & _NO_QUOTA:
            return f"there is no quota or credit left {said}; top it up, then run sync again"
        if status == 404 or codes & _UNKNOWN_MODEL:
            return f"no model {model!r} there, or no such address {said}; correct model or base_url"
        if codes & _UNSUPPORTED:
            return (
                f"the model does not take {param or 'a parameter'} as configured {said}; set it in the teacher's params"
            )
        return None

    def _note(self, reply: Reply, headers: Mapping[str, str], sent_at: float, ticket: Ticket | None) -> None:
        """Tell the pace what came back."""
        if reply.kind == "rate_limited":
            self._pace.limited(sent_at, reply.retry_after_s, reply.error or "")
        elif reply.status is ReplyStatus.ERROR:
            self._pace.failed(sent_at, reply.error or "")
            if reply.retry_after_s is not None:
                self._pace.pause(reply.retry_after_s)
        else:
            self._pace.answered()
        tokens = (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
        if ticket and tokens:
            ticket.spent(tokens)
        for budget, needed in (("requests", 1), ("tokens", max(1, tokens))):
            left = _number(headers.get(f"x-ratelimit-remaining-{budget}"))
            reset = _duration(headers.get(f"x-ratelimit-reset-{budget}"))
            if left is not None and reset is not None and left < needed:
                self._pace.pause(reset)


def _api_key(config: TeacherConfig, where: str) -> str:
    key = os.environ.get(config.api_key_env)
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
