"""A chat server's responses to Replies: successful ones and errors, online or from a batch's file.

Invariant: every body becomes a Reply, and secrets in it are masked. This module sends nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from recycledb.config import TeacherConfig
from recycledb.errors import without_password
from recycledb.reflection.teachers.contract import RETRIABLE, Reply, failed, judged, storable
from recycledb.reflection.teachers.prices import find_cost, is_unbegun, usage_cost
from recycledb.reflection.teachers.wire import Access, parsed, pointed_to

BODY_MOST = 65_536  # characters kept of a body that is not a chat completion

_NO_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_UNKNOWN_MODEL = frozenset({"model_not_found", "invalid_model"})
_UNSUPPORTED = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})
_TOO_LONG = frozenset({"context_length_exceeded", "string_above_max_length", "request_too_large"})
_KINDS = {408: "timeout", 409: "conflict", 429: "rate_limited"}
# Servers other than OpenAI's send no code for it, only a message.
_TOO_LONG_WORDS = re.compile(r"context (?:length|window|size)|maximum (?:context|model) length|too many tokens", re.I)


class Bodies:
    """Parses the responses of one teacher's server."""

    def __init__(self, config: TeacherConfig, access: Access, *, batch: bool = False) -> None:
        self.address, self.mask = access.address, access.mask
        self._config, self._key_env = config, config.api_key_env
        # A price table has the online price, not that of batches.
        unpriced = batch and (config.price_in is None or config.price_out is None)
        self._cost = None if unpriced else find_cost(config, self.address)

    def unreadable(self, why: str, body: bytes, **fields: Any) -> Reply:
        """Return the reply for a body that our code failed to parse."""
        return failed("unreadable", self.mask(why), raw=self._body(body), **fields)

    def read(self, body: bytes) -> Reply:
        """Return the reply for the body of a successful response."""
        try:
            data = parsed(body)
        except ValueError:
            return failed("bad_body", f"status 200, but not JSON: {self._excerpt(body)}", raw=self._body(body))
        return self.judge(data, body)

    def judge(self, data: object, said: bytes) -> Reply:
        """Return the reply for a chat completion; `said` is the body that is kept if it is not one."""
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
            None if text is None else self.mask.in_answer(text),
            self._shown(choice.get("finish_reason")),
            self.mask(refusal) if isinstance(refusal, str) else None,
            **fields,
        )

    def masked(self, reply: Reply) -> Reply:
        """Return a reply with secrets masked in its `raw`."""
        return replace(reply, raw=self.mask(reply.raw)) if reply.raw else reply

    def _shown(self, value: object) -> object:
        return self.mask(value) if isinstance(value, str) else value

    def _body(self, body: bytes) -> str:
        """Return a body in the form kept in `raw`. It is masked before it is truncated, so that no part of a key is left."""
        return self.mask(body.decode("utf-8", "replace"))[:BODY_MOST]

    def _excerpt(self, body: bytes) -> str:
        return self._body(body)[:200]

    def refused(self, status: int, headers: Mapping[str, str], body: bytes) -> tuple[Reply, str | None]:
        """Return the reply for an error status, and the message for the user if the run must stop."""
        said = _said(body)
        codes = {value for name in ("code", "type") if isinstance(value := said.get(name), str)}
        message = said.get("message")
        message = self.mask(message if isinstance(message, str) else self._excerpt(body))
        message = " ".join(without_password(message).split())[:300]
        param = said.get("param")
        stop = self._must_stop(status, codes, self.mask(param)[:100] if isinstance(param, str) else None, message)
        if 300 <= status < 400:
            message = stop = self._redirected(status, headers)
        kind = _error_kind(status, codes, message, stop is not None)
        retry_after_s = retry_after(headers) if kind in RETRIABLE else None
        cost_usd = 0.0 if is_unbegun(status, codes, _NO_QUOTA | _UNKNOWN_MODEL | _UNSUPPORTED) else None
        reply = failed(kind, f"{status}: {message}", retry_after_s=retry_after_s, cost_usd=cost_usd)
        return reply, storable(stop) if stop else None

    def _redirected(self, status: int, headers: Mapping[str, str]) -> str:
        location = headers.get("location")
        if not location:
            return f"it answers {status}, which is no answer to a question; correct base_url"
        target = self.mask(pointed_to(self.address, location))
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
    if isinstance(content, list):  # some servers send a list of parts
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else None


def _said(body: bytes) -> Mapping[str, Any]:
    """Return the error object of a body, wrapped or not; empty if there is none."""
    try:
        data = parsed(body)
    except ValueError:
        return {}
    inner = data.get("error", data) if isinstance(data, dict) else None
    if isinstance(inner, str):
        return {"message": inner}
    return inner if isinstance(inner, dict) else {}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of Retry-After, which is a number or a date; None without one."""
    if (milliseconds := number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None or (seconds := number(value)) is not None:
        return None if value is None else seconds
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < float("inf") else None
