"""HTTP access to an OpenAI-compatible server: its address, masking of its secrets, and clients that limit the size of responses.

Invariant: a response is decompressed in pieces and no further than the limit, whatever its Content-Length or encoding; no redirect is
followed, so keys and questions only go to the configured address; and the key, and a password in the address, leave this process
only in the Authorization header.
"""

import base64
import json
import os
import re
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

import httpx2
import openai

from recycledb.config import TeacherConfig
from recycledb.errors import TeacherError, without_password
from recycledb.reflection.teachers.contract import missing_key

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_S = 10.0
MEGABYTE = 1_000_000
LEAST_LENGTH = 4  # of a key or password that is masked: a shorter one would match parts of words
CREDENTIALS_LENGTH = 10  # of "Basic" and its value, at least
KEY_LENGTH = 16  # a shorter "key" (ollama, lm-studio) is a word that may occur in a model's text
_CREDENTIALS = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=*-]{4,}", re.IGNORECASE)
_BODY = "recycledb.body"  # key of a response's body in its extensions
_BIG_NUMBER = 40  # digits
DEPTH_MOST = 100  # levels of nesting of a body; a chat completion has five
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]+|[\]}]+', re.DOTALL)  # and strings, whose brackets do not count


class Mask:
    """Masks a teacher's key and password in texts from its server."""

    def __init__(self, *secrets: str) -> None:
        told = [secret for secret in secrets if len(secret) >= LEAST_LENGTH]
        forms = {form for secret in told for form in (secret, quote(secret, safe=""), *_escaped(secret))}
        self._secrets = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return a server's text with the secrets masked, and any other credentials of a header too."""
        if len(text) < LEAST_LENGTH:
            return text
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text if len(text) < CREDENTIALS_LENGTH else _CREDENTIALS.sub(r"\1 ***", text)

    def in_answer(self, text: str) -> str:
        """Return a model's text, otherwise unchanged, with those secrets masked that are too long to be words."""
        for secret in self._secrets:
            if len(secret) >= KEY_LENGTH and secret in text:
                text = text.replace(secret, "***")
        return text


def _escaped(secret: str) -> tuple[str, str]:
    written = json.dumps(secret)[1:-1]
    return written, written.replace("/", "\\/")


@dataclass(frozen=True)
class Access:
    """The address of a teacher's server, and the credentials for it."""

    address: str  # without user and password
    key: str
    headers: dict[str, str]
    mask: Mask


def find_access(config: TeacherConfig) -> Access:
    """Return the address and key of a teacher; TeacherError if one of them is invalid.

    A user and password in the address are sent as Basic authentication instead of the key.
    """
    given = config.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    parts = _parts(given)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        shown = without_password(given)
        raise TeacherError(
            f"teacher {config.name!r}: base_url {shown!r} is not a valid URL; give one like {OPENAI_URL}"
        )
    key = _api_key(config, parts.hostname)
    if parts.username is None:
        return Access(given, key or "none", {}, Mask(key))
    user, password = unquote(parts.username), unquote(parts.password or "")
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    mask = Mask(key, token, password, parts.password or "", parts.netloc.rpartition("@")[0])
    return Access(address, key or "none", {"Authorization": f"Basic {token}"}, mask)


def _parts(address: str) -> SplitResult | None:
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - raises if it is not a number
    except ValueError:
        return None
    return parts


def _api_key(config: TeacherConfig, host: str) -> str:
    """Return the key, '' if there is none: local servers need none."""
    key = os.environ.get(config.api_key_env, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise TeacherError(f"teacher {config.name!r}: {config.api_key_env} has characters that cannot be in a key")
    if (missing := missing_key(config)) is not None:
        raise TeacherError(missing)
    if not key and host.endswith("openai.com"):
        raise TeacherError(f"teacher {config.name!r} needs a key: set {config.api_key_env} in the environment")
    return key


def pointed_to(where: str, location: str) -> str:
    """Return the target of a redirect, without credentials, query and the endpoint's path."""
    parts = _parts(urljoin(f"{where}/chat/completions", location))
    if parts is None:
        return "nowhere"
    plain = urlunsplit(parts._replace(query="", fragment=""))
    return without_password(plain)[:200].removesuffix("/chat/completions")


def parsed(body: bytes) -> Any:
    """Return the JSON of a body; ValueError if it is not JSON.

    Malformed parts that no reply needs must not make the reply unreadable: bytes that are not UTF-8 become U+FFFD, integers too long
    for Python become texts, and values nested deeper than `DEPTH_MOST` are null.
    """
    try:
        return json.loads(body)
    except UnicodeDecodeError:
        body = body.decode("utf-8", "replace").encode()
    except RecursionError:
        body = _pruned(body)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python parses no integer of more than 4,300 digits
        pass
    try:
        return json.loads(body, parse_int=_whole_number)
    except RecursionError:
        return json.loads(_pruned(body), parse_int=_whole_number)


def _pruned(body: bytes) -> bytes:
    """Return JSON with values nested deeper than `DEPTH_MOST` replaced by null, in one pass."""
    kept, depth, begin = [], 0, 0
    for token in _BRACKETS.finditer(body):
        run, before = token[0], depth
        if run[0] in b"[{":
            depth += len(run)
            if before <= DEPTH_MOST < depth:
                kept.append(body[begin : token.start() + DEPTH_MOST - before])
        elif run[0] in b"]}":
            depth -= len(run)
            if depth <= DEPTH_MOST < before:
                begin = token.start() + before - DEPTH_MOST
                kept.append(b"null")
    return b"".join([*kept, body[begin:] if depth <= DEPTH_MOST else b""])


def _whole_number(digits: str) -> int | str:
    return int(digits) if len(digits) <= _BIG_NUMBER else f"{digits[:_BIG_NUMBER]}… ({len(digits)} digits)"


# -- clients


class TooLarge(openai.OpenAIError):
    """A response is larger than the limit; `headers` are the response's."""

    def __init__(self, most: int, headers: httpx2.Headers) -> None:
        super().__init__(f"the reply is larger than {most // MEGABYTE:,} MB; max_reply_mb sets this bound")
        self.headers = headers


class Refused(openai.OpenAIError):
    """The server responded with an error status. Raised before the SDK decodes the body."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response


class _AsyncBounded(httpx2.AsyncClient):
    most_bytes: int

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        response = await super().send(request, **{**options, "stream": True})
        content = bytearray()
        try:
            async with aclosing(_of_async(response)) as parts:
                async for part in parts:
                    content += part
                    if len(content) > self.most_bytes:
                        raise TooLarge(self.most_bytes, response.headers)
        finally:
            await response.aclose()
        # A new response, as `_whole` makes for the other client, would take a tenth of a millisecond.
        response.extensions[_BODY] = bytes(content)
        if not response.is_success:
            raise Refused(response)
        return response


class _OverAiohttp(_AsyncBounded, openai.DefaultAioHttpClient):
    pass


class _OverHttpx(_AsyncBounded, openai.DefaultAsyncHttpxClient):
    pass


class _Bounded(openai.DefaultHttpxClient):
    most_bytes: int

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        response = super().send(request, **{**options, "stream": True})
        if options.get("stream") and response.is_success:
            return response
        content = bytearray()
        with closing(response), closing(_of_sync(response)) as parts:
            for part in parts:
                content += part
                if len(content) > self.most_bytes:
                    raise TooLarge(self.most_bytes, response.headers)
        return _whole(response, bytes(content))


def body_of(response: httpx2.Response) -> bytes:
    """Return the decompressed body of a response of `async_client`."""
    return bytes(response.extensions[_BODY])


def _of_async(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    return response.aiter_bytes()


def _of_sync(response: httpx2.Response) -> Generator[bytes, None, None]:
    return response.iter_bytes()  # type: ignore[return-value] # a generator, declared as an iterator


def _whole(response: httpx2.Response, content: bytes) -> httpx2.Response:
    """Return a response with the decompressed body."""
    headers = response.headers
    headers.pop("content-encoding", None)
    whole = httpx2.Response(
        response.status_code,
        headers=headers,
        content=content,
        request=response.request,
        extensions=response.extensions,
    )
    whole.encoding = "utf-8"  # not the server's charset: the SDK would accept the name of any Python codec
    return whole


def async_client(concurrency: int, most_mb: int) -> httpx2.AsyncClient:
    """Return the client that asks questions, `concurrency` at a time."""
    # With 256 in flight, httpx's own pool took twice the CPU time of aiohttp's for each request. Idle connections are closed
    # before a server's usual five seconds, so that no question is sent on a connection that the server is closing.
    limits = httpx2.Limits(
        max_connections=concurrency + 8, max_keepalive_connections=concurrency + 8, keepalive_expiry=4.0
    )
    kind = _OverHttpx if find_spec("aiohttp") is None else _OverAiohttp
    client = kind(limits=limits, follow_redirects=False)
    client.most_bytes = most_mb * MEGABYTE
    return client


def sync_client(most_mb: int) -> httpx2.Client:
    """Return the client for files and batches; the caller limits the size of streamed responses."""
    client = _Bounded(follow_redirects=False)
    client.most_bytes = most_mb * MEGABYTE
    return client
