"""An OpenAI-compatible chat server on loopback that fails as real ones do, by a seed, and keeps a log.

Real HTTP over real sockets, in a thread (`with TeacherServer(...) as server`) or a process of its own
(`python tests/teacher_server.py --delay 0.5 --fault server_error=0.1 --log log.jsonl`, which prints its base URL).

Invariant: which fault a request meets depends on the seed, its question and how often that question was asked before, and
on nothing else; so a run is reproducible whatever the order in which its requests arrive. Each request is in `log` from the
moment it has arrived whole, and its exchange says what was sent and whether all of it was.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any


class Fault(StrEnum):
    """What a request may meet."""

    NONE = "none"
    SLOW = "slow"  # a good answer, late
    RATE_LIMITED = "rate_limited"  # 429 without Retry-After
    RATE_LIMITED_AFTER = "rate_limited_after"  # 429 with Retry-After
    NO_QUOTA = "no_quota"  # 429 insufficient_quota
    UNAUTHORIZED = "unauthorized"  # 401
    FORBIDDEN = "forbidden"  # 403
    UNKNOWN_MODEL = "unknown_model"  # 404
    CONFLICT = "conflict"  # 409
    REQUEST_TIMEOUT = "request_timeout"  # 408
    SERVER_ERROR = "server_error"  # 500
    BAD_GATEWAY = "bad_gateway"  # 502 in HTML
    HANG = "hang"  # no answer until the client gives up
    TRICKLE = "trickle"  # a body that never ends, a space at a time
    RESET = "reset"  # the connection is reset before any answer
    RESET_IN_BODY = "reset_in_body"  # the connection is reset in the middle of the body
    INVALID_JSON = "invalid_json"  # 200, but no JSON
    CUT_JSON = "cut_json"  # 200, JSON that stops halfway
    HTML = "html"  # 200, a web page
    NO_CHOICES = "no_choices"  # 200, empty choices
    NULL_MESSAGE = "null_message"  # 200, a choice without message
    EMPTY = "empty"  # an empty text
    CUT_OFF = "cut_off"  # finish_reason length
    REFUSAL = "refusal"
    FILTERED = "filtered"  # finish_reason content_filter
    FILTERED_PROMPT = "filtered_prompt"  # 400 content_filter
    TOO_LONG = "too_long"  # 400 context_length_exceeded
    BAD_REQUEST = "bad_request"  # 400 of another kind
    PROXY = "proxy"  # 400 from a proxy that does not know the model or the key, whatever is asked; with an id of the request
    UNSUPPORTED = "unsupported"  # 400: a reasoning model refuses max_tokens
    NO_STOP = "no_stop"  # 400: a reasoning model refuses stop
    ODD_NAMES = "odd_names"  # lone surrogates and NUL in model and finish_reason
    LONG_NAMES = "long_names"  # a model's name of a million letters
    WRONG_TYPES = "wrong_types"  # a list as model, an object as finish_reason, true and 12.5 as counts of tokens
    HUGE_USAGE = "huge_usage"  # counts of 2^63 and of -1
    ENDLESS_USAGE = "endless_usage"  # counts of 401 and of 5,001 digits
    NAN_USAGE = "nan_usage"  # NaN and Infinity, which are no JSON
    DEEP = "deep"  # a field nested 100,000 deep
    NOT_UTF8 = "not_utf8"  # a letter of the text in Latin-1
    ODD_CONTENT = "odd_content"  # a number in place of the text
    NO_USAGE = "no_usage"  # a good answer that does not say what it took
    BOMB = "bomb"  # 600 MB in 600 kB of gzip
    LARGE = "large"  # 20 MB as they are
    ECHO = "echo"  # 400, with the key in the message
    ECHO_ANSWER = "echo_answer"  # the key in every field of a good answer
    ECHO_PAGE = "echo_page"  # 200, a web page with all headers of the request
    REDIRECT = "redirect"  # 307 to another address
    NOT_MODIFIED = "not_modified"  # 304
    ODD_CHARSET = "odd_charset"  # 500, in a "charset" that is none of letters
    CLOSED_IN_BODY = "closed_in_body"  # the connection is closed in order in the middle of the body

    # Money: something was generated and is billed, but the reply does not say how much, or says it wrongly.
    EMPTY_NO_USAGE = "empty_no_usage"
    REFUSAL_NO_USAGE = "refusal_no_usage"
    FILTERED_NO_USAGE = "filtered_no_usage"
    NEGATIVE_USAGE = "negative_usage"
    ZERO_USAGE = "zero_usage"
    CACHED_BEYOND_PROMPT = "cached_beyond_prompt"  # more tokens from the cache than the prompt has
    THOUGHT_APART = "thought_apart"  # tokens of thinking, which are in the total only
    BILLED_HANG = "billed_hang"  # generated, but no answer until the client gives up
    BILLED_RESET = "billed_reset"  # generated, then the connection is reset
    BILLED_ERROR = "billed_error"  # generated, then 500
    BILLED_FILTER = "billed_filter"  # 400 content_filter: the prompt was evaluated
    OVERLONG = "overlong"  # ten times as long as max_tokens allows


# The status and body of the faults that are no more than that; errors by OpenAI's published shape.
_ERRORS: dict[Fault, tuple[int, str, str | None]] = {
    Fault.RATE_LIMITED: (429, "rate_limit_exceeded", "Rate limit reached for requests"),
    Fault.RATE_LIMITED_AFTER: (429, "rate_limit_exceeded", "Rate limit reached for tokens"),
    Fault.NO_QUOTA: (429, "insufficient_quota", "You exceeded your current quota, please check your plan."),
    Fault.UNAUTHORIZED: (401, "invalid_api_key", "Incorrect API key provided."),
    Fault.FORBIDDEN: (403, "forbidden", "You are not allowed to sample from this model"),
    Fault.UNKNOWN_MODEL: (404, "model_not_found", "The model does not exist or you do not have access to it."),
    Fault.CONFLICT: (409, "conflict", "Another request is in progress"),
    Fault.REQUEST_TIMEOUT: (408, "timeout", "Request timed out"),
    Fault.SERVER_ERROR: (500, "server_error", "The server had an error while processing your request."),
    Fault.FILTERED_PROMPT: (400, "content_filter", "The prompt was filtered"),
    Fault.TOO_LONG: (400, "context_length_exceeded", "This model's maximum context length is 8192 tokens."),
    Fault.BAD_REQUEST: (400, "invalid_request_error", "Invalid 'messages[0].content'"),
    Fault.NO_STOP: (400, "unsupported_parameter", "Unsupported parameter: 'stop' is not supported with this model."),
    Fault.PROXY: (400, "400", "team not allowed to access model"),
    Fault.UNSUPPORTED: (400, "unsupported_parameter", "Use 'max_completion_tokens' instead of 'max_tokens'."),
}
_HEADERS = {Fault.BOMB: {"content-encoding": "gzip"}}
_ERRORS[Fault.BILLED_ERROR] = _ERRORS[Fault.SERVER_ERROR]
_ERRORS[Fault.BILLED_FILTER] = _ERRORS[Fault.FILTERED_PROMPT]

_UNBILLED = {
    *(Fault.RATE_LIMITED, Fault.RATE_LIMITED_AFTER, Fault.NO_QUOTA, Fault.UNAUTHORIZED, Fault.FORBIDDEN),
    *(Fault.UNKNOWN_MODEL, Fault.UNSUPPORTED, Fault.NO_STOP),
}
_WITHOUT_USAGE = {Fault.NO_USAGE, Fault.EMPTY_NO_USAGE, Fault.REFUSAL_NO_USAGE, Fault.FILTERED_NO_USAGE}
_GENERATED_UNSEEN = {Fault.BILLED_HANG, Fault.BILLED_RESET, Fault.BILLED_ERROR, Fault.BILLED_FILTER}
_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


_FIXED: dict[Fault, tuple[int, bytes, str]] = {
    Fault.BAD_GATEWAY: (502, _PAGE, "text/html"),
    Fault.HTML: (200, _PAGE, "text/html"),
    Fault.INVALID_JSON: (200, b"upstream said: no", "application/json"),
    Fault.REDIRECT: (307, b"", "text/html"),
    Fault.NOT_MODIFIED: (304, b"", "text/html"),
    Fault.ODD_CHARSET: (500, b"not base64!", "text/plain; charset=base64"),
}


@dataclass(slots=True)
class Exchange:
    """A request that arrived, and what was sent back; `nth` counts the requests of one question from 1."""

    number: int
    question: str
    nth: int
    arrived_at: float
    body: dict[str, Any]
    headers: dict[str, str]
    in_flight: int
    fault: Fault = Fault.NONE
    status: int | None = None
    text: str | None = None
    prompt_tokens: int = 0  # what was generated, whatever the server says of it
    completion_tokens: int = 0
    sent_at: float | None = None
    complete: bool = False  # everything that was to be sent was handed to the connection

    @property
    def prompt(self) -> str:
        """All messages' texts."""
        return "\n".join(message["content"] for message in self.body["messages"])

    @property
    def told(self) -> tuple[int | None, int | None]:
        """The counts of tokens that can be read in the answer, in and out; None where what it says is no count."""
        if self.fault in _WITHOUT_USAGE or self.fault in _ODD_COUNTS or self.fault is Fault.NEGATIVE_USAGE:
            return None, None
        if self.fault is Fault.ZERO_USAGE:
            return 0, 0
        seen = self.fault is Fault.THOUGHT_APART
        return self.prompt_tokens, max(1, len(self.text or "") // 4) if seen else self.completion_tokens

    def bill(self, price_in: float, price_out: float) -> float:
        """What the server bills for it, in dollars, at prices for a million tokens: whatever it generated, told or not."""
        if self.fault in _UNBILLED:
            return 0.0
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


def marked_answer(exchange: Exchange) -> str:
    """Return a good reply to the step whose markers the prompt asks for; the same for the same question."""
    name = exchange.question[:8]
    prompt = exchange.prompt
    if "[New Instruction]" in prompt:
        return (
            f"1. The instruction {name} is too plain.\n\n[New Instruction]\nExplain {name} in three steps.\n[End]\n"
            f"[New Answer]\nFirst {name}, then more, then the End of it.\n[End]"
        )
    if "[Better Answer]" in prompt:
        return f"1. Too short.\n\n[Better Answer]\nA better answer, {name}, with every detail.\n[End]"
    if "[Instruction]" in prompt:
        return f"[Instruction]\nDo {name} with what is given here.\n[End]"
    return f"An answer to {name}."


@dataclass
class TeacherServer:
    """The server; its parameters say how it fails.

    `faults` gives each fault's probability. `decide` may name a fault for an exchange and goes before them; None leaves it
    to chance. `capacity`: more requests than this in flight are answered 429. `hang_s` bounds a hang, so that a test ends.
    """

    seed: int = 0
    faults: Mapping[Fault, float] = field(default_factory=dict)
    decide: Callable[[Exchange], Fault | None] | None = None
    answer: Callable[[Exchange], str] = marked_answer
    delay_s: float = 0.0
    slow_s: float = 0.3
    hang_s: float = 30.0
    retry_after: str = "1"
    capacity: int | None = None
    location: str = "https://user:secret@elsewhere.example/v1/chat/completions?token=abc"
    reply_headers: Callable[[Exchange], Mapping[str, str]] | None = None
    port: int = 0
    log_path: Path | None = None

    def __post_init__(self) -> None:
        self.log: list[Exchange] = []
        self.questions: Counter[str] = Counter()
        self.in_flight = 0
        self.connections = 0
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ running

    def start(self) -> "TeacherServer":
        """Listen; on the same port as before, if it was stopped."""
        self._ready.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._ready.wait(10)
        return self

    def stop(self) -> None:
        """Drop every connection and listen no longer."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)
            self._thread = None

    def __enter__(self) -> "TeacherServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """What a client takes as its base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the server is stopping
        finally:
            self._open.discard(task)
            writer.close()

    # ------------------------------------------------------------------ one request

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False where the connection is at its end."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if not head[0].startswith("POST /v1/chat/completions "):
            await self._send(writer, 404, b'{"error": {"message": "no such address"}}')
            return True
        exchange = self._arrived(json.loads(body), headers)
        try:
            return await self._reply(exchange, reader, writer)
        finally:
            self.in_flight -= 1
            self._write_log(exchange)

    def _arrived(self, body: dict[str, Any], headers: dict[str, str]) -> Exchange:
        question = hashlib.sha256(json.dumps(body["messages"], sort_keys=True).encode()).hexdigest()
        self.questions[question] += 1
        self.in_flight += 1
        exchange = Exchange(
            number=len(self.log),
            question=question,
            nth=self.questions[question],
            arrived_at=time.monotonic(),
            body=body,
            headers=headers,
            in_flight=self.in_flight,
        )
        exchange.prompt_tokens = len(exchange.prompt) // 4
        self.log.append(exchange)
        exchange.fault = self._fault(exchange)
        return exchange

    def _fault(self, exchange: Exchange) -> Fault:
        decided = self.decide(exchange) if self.decide else None
        if decided is not None:
            return decided
        if self.capacity is not None and exchange.in_flight > self.capacity:
            return Fault.RATE_LIMITED
        chance = random.Random(f"{self.seed} {exchange.question} {exchange.nth}").random()
        for fault, share in self.faults.items():
            chance -= share
            if chance < 0:
                return fault
        return Fault.NONE

    async def _reply(self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        fault = exchange.fault
        if self.delay_s and fault in (Fault.NONE, Fault.CUT_OFF, Fault.EMPTY, Fault.REFUSAL):
            await asyncio.sleep(self.delay_s)
        if fault is Fault.SLOW:
            await asyncio.sleep(self.slow_s)
        if fault in _GENERATED_UNSEEN:
            self._completion(exchange)
        if fault in (Fault.HANG, Fault.BILLED_HANG):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), self.hang_s)  # ends when the client hangs up
            return False
        if fault in (Fault.RESET, Fault.BILLED_RESET):
            _reset(writer)
            return False
        status, body, kind = self._compose(exchange)
        exchange.status = status
        headers = dict(self.reply_headers(exchange)) if self.reply_headers else {}
        if fault is Fault.RATE_LIMITED_AFTER:
            headers["retry-after"] = self.retry_after
        if fault in _HEADERS:
            headers |= _HEADERS[fault]
        if fault is Fault.REDIRECT:
            headers["location"] = self.location
        if fault in (Fault.RESET_IN_BODY, Fault.TRICKLE, Fault.CLOSED_IN_BODY):
            return await self._send_partly(exchange, writer, body)
        await self._send(writer, status, body, kind, {"x-request-id": f"req-{exchange.number}", **headers})
        exchange.sent_at, exchange.complete = time.monotonic(), True
        return True

    async def _send_partly(self, exchange: Exchange, writer: asyncio.StreamWriter, body: bytes) -> bool:
        writer.write(_head(200, len(body) + 1_000_000, "application/json", {}) + body[: len(body) // 2])
        await writer.drain()
        if exchange.fault is Fault.RESET_IN_BODY:
            await asyncio.sleep(0.01)  # so that the half really leaves before the reset overtakes it
            _reset(writer)
        if exchange.fault is not Fault.TRICKLE:
            return False
        deadline = time.monotonic() + self.hang_s
        while time.monotonic() < deadline:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)
        return False

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: bytes,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        writer.write(_head(status, len(body), kind, headers or {}) + body)
        await writer.drain()

    def _compose(self, exchange: Exchange) -> tuple[int, bytes, str]:
        fault = exchange.fault
        if fault in _ERRORS:
            status, code, message = _ERRORS[fault]
            param = "max_tokens" if fault is Fault.UNSUPPORTED else None
            if fault is Fault.PROXY:
                message, code = (
                    f"{message} {exchange.body['model']!r}; request {exchange.question[:12]}-{exchange.number}",
                    "400",
                )
            error = {"message": message, "type": code, "code": code, "param": param}
            return status, json.dumps({"error": error}).encode(), "application/json"
        if fault in _FIXED:
            return _FIXED[fault]
        if fault is Fault.ECHO:
            error = {"message": f"No such key: {exchange.headers.get('authorization')}", "code": "odd", "type": "odd"}
            return 400, json.dumps({"error": error}).encode(), "application/json"
        if fault is Fault.ECHO_PAGE:
            return 200, f"<html>{exchange.headers}</html>".encode(), "text/html"
        if fault is Fault.BOMB:
            return 200, bomb(600), "application/json"
        completion = self._completion(exchange)
        _spoil(completion, exchange)
        body = _written(completion, fault)
        return 200, body[: len(body) // 2] if fault is Fault.CUT_JSON else body, "application/json"

    def _completion(self, exchange: Exchange) -> dict[str, Any]:
        fault = exchange.fault
        text: str | None = self.answer(exchange)
        assert text is not None
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        finish_reason = "stop"
        if fault is Fault.CUT_OFF:
            finish_reason, text = "length", text[: len(text) // 2]
        elif fault in (Fault.FILTERED, Fault.FILTERED_NO_USAGE):
            finish_reason, text = "content_filter", None
        elif fault in (Fault.EMPTY, Fault.EMPTY_NO_USAGE):
            text = ""
        elif fault in (Fault.REFUSAL, Fault.REFUSAL_NO_USAGE):
            message["refusal"], text = "I cannot help with that.", None
        message["content"] = text
        exchange.text = text
        exchange.completion_tokens = max(1, len(text or "") // 4)
        if fault in (Fault.EMPTY_NO_USAGE, Fault.REFUSAL_NO_USAGE, Fault.FILTERED_NO_USAGE, Fault.THOUGHT_APART):
            exchange.completion_tokens = int(exchange.body["max_tokens"])  # it went into thinking, or was held back
        elif fault is Fault.OVERLONG:
            exchange.completion_tokens = 10 * int(exchange.body["max_tokens"])
        choice = {
            "index": 0,
            "message": None if fault is Fault.NULL_MESSAGE else message,
            "finish_reason": finish_reason,
        }
        return {
            "id": f"chatcmpl-{exchange.number}",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": f"{exchange.body['model']}-2026-01-01",
            "choices": [] if fault is Fault.NO_CHOICES else [choice],
            **({} if fault in _WITHOUT_USAGE else {"usage": _usage(exchange, len(text or "") // 4)}),
        }

    def _write_log(self, exchange: Exchange) -> None:
        if self.log_path is not None:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(exchange)) + "\n")


def _spoil(completion: dict[str, Any], exchange: Exchange) -> None:
    """Make a good answer one that is odd in the way of the exchange's fault; its text stays as it is."""
    fault, choice = exchange.fault, completion["choices"][0] if completion["choices"] else {}
    if fault is Fault.ODD_NAMES:
        completion["model"], choice["finish_reason"] = "m\ud800\0", "st\udfffop"
    elif fault is Fault.LONG_NAMES:
        completion["model"] = "m" * 1_000_000
    elif fault is Fault.WRONG_TYPES:
        completion["model"], choice["finish_reason"] = ["m"], {"reason": "stop"}
    elif fault is Fault.NOT_UTF8:
        exchange.text = choice["message"]["content"] + " K\ufffdse"  # as it is read
        choice["message"]["content"] += " Käse"
    elif fault is Fault.ODD_CONTENT:
        exchange.text, choice["message"]["content"] = None, 42
    elif fault is Fault.ECHO_ANSWER:
        key = exchange.headers.get("authorization", "").removeprefix("Bearer ")
        completion["model"] = choice["finish_reason"] = key
        choice["message"]["content"] = f"Your key is {key}, is it not?"
        exchange.text = choice["message"]["content"].replace(key, "***" if len(key) >= 16 else key)  # as it is stored
    if fault in _ODD_COUNTS:
        completion["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), _ODD_COUNTS[fault], strict=True))


_ODD_COUNTS: dict[Fault, tuple[Any, Any]] = {
    Fault.HUGE_USAGE: (2**63, -1),
    Fault.WRONG_TYPES: (True, 12.5),
    Fault.ENDLESS_USAGE: (10**400, "5,001 digits"),
    Fault.NAN_USAGE: (float("nan"), float("inf")),
}


def _written(completion: dict[str, Any], fault: Fault) -> bytes:
    """Return a completion as JSON, or as what the fault makes of it."""
    body = json.dumps(completion, ensure_ascii=fault is not Fault.NOT_UTF8)
    if fault is Fault.NOT_UTF8:
        return body.encode("latin-1")
    if fault is Fault.ENDLESS_USAGE:
        body = body.replace('"5,001 digits"', "1" + "0" * 5_000)
    if fault is Fault.DEEP:
        deep = '{"a": [{"]": ' + "[" * 100_000 + "]" * 100_000 + "}, " + '{"b":[' * 50_000 + "]}" * 50_000 + "]}"
        body = '{"before": ' + deep + ", " + body[1:-1] + ', "more": ' + deep + "}"
    if fault is Fault.LARGE:
        body = body[:-1] + ', "more": "' + "x" * 20_000_000 + '"}'
    return body.encode()


def bomb(megabytes: int) -> bytes:
    """Return gzip of so many megabytes: one of zeros, a thousandth as long, over and over."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(bytes(1)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + again * megabytes


def _usage(exchange: Exchange, seen: int) -> dict[str, Any]:
    """Return what the server says of the tokens; `seen` are those of the text alone."""
    prompt, completion = exchange.prompt_tokens, exchange.completion_tokens
    total: dict[str, Any] = {"total_tokens": prompt + completion}
    match exchange.fault:
        case Fault.NEGATIVE_USAGE:
            return {"prompt_tokens": -prompt, "completion_tokens": -completion, "total_tokens": -1}
        case Fault.ZERO_USAGE:
            return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        case Fault.CACHED_BEYOND_PROMPT:
            total["prompt_tokens_details"] = {"cached_tokens": 1_000 * prompt}
        case Fault.THOUGHT_APART:
            completion = max(1, seen)
    return {"prompt_tokens": prompt, "completion_tokens": completion, **total}


def _head(status: int, length: int, kind: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset rather than an orderly end."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before a good answer")
    parser.add_argument("--capacity", type=int)
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=SHARE")
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    pairs = [re.fullmatch(r"(\w+)=([\d.]+)", fault) for fault in options.fault]
    faults = {Fault(pair[1]): float(pair[2]) for pair in pairs if pair}
    server = TeacherServer(
        seed=options.seed,
        faults=faults,
        delay_s=options.delay,
        capacity=options.capacity,
        port=options.port,
        log_path=options.log,
    ).start()
    print(server.base_url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
