"""How an OpenAI-compatible server is reached: its address, what must not be shown of it, and clients that bound what they read.

Invariant: a reply is unpacked piece by piece and no further than the bound, whatever its length or its encoding promises; no
redirect is followed, so no key and no question goes where the configuration does not say; and the key, and a password in the
address, never leave this process but in the header that they are for.
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

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_S = 10.0
MEGABYTE = 1_000_000
LEAST_LENGTH = 4  # of a key or password that is looked for: a shorter one would be found in any word
CREDENTIALS_LENGTH = 10  # of "Basic" with what follows it, at least
KEY_LENGTH = 16  # a shorter "key" (ollama, lm-studio) is a word that an answer may well hold
_CREDENTIALS = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=*-]{4,}", re.IGNORECASE)
_BODY = "recycledb.body"  # where a response carries what was read of it
_BIG_NUMBER = 40  # digits
DEPTH_MOST = 100  # of a body's nesting; an answer needs five
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]+|[\]}]+', re.DOTALL)  # and texts, whose brackets are none


class Mask:
    """Hides a teacher's key and password in what its server says."""

    def __init__(self, *secrets: str) -> None:
        told = [secret for secret in secrets if len(secret) >= LEAST_LENGTH]
        forms = {form for secret in told for form in (secret, quote(secret, safe=""), *_escaped(secret))}
        self._secrets = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return what a server said without the secrets, and without any other credentials of a header."""
        if len(text) < LEAST_LENGTH:
            return text
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text if len(text) < CREDENTIALS_LENGTH else _CREDENTIALS.sub(r"\1 ***", text)

    def in_answer(self, text: str) -> str:
        """Return a model's answer, of which nothing else may change, without the secrets that are no common words."""
        for secret in self._secrets:
            if len(secret) >= KEY_LENGTH and secret in text:
                text = text.replace(secret, "***")
        return text


def _escaped(secret: str) -> tuple[str, str]:
    written = json.dumps(secret)[1:-1]
    return written, written.replace("/", "\\/")


@dataclass(frozen=True)
class Access:
    """Where a teacher's server is, and by what it lets us in."""

    address: str  # without user and password
    key: str
    headers: dict[str, str]
    mask: Mask


def find_access(config: TeacherConfig) -> Access:
    """Return the address and key of a teacher; TeacherError where one of them cannot be right.

    A user and password in the address are sent as Basic authentication, in place of the key.
    """
    given = config.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    parts = _parts(given)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        shown = without_password(given)
        raise TeacherError(f"teacher {config.name!r}: base_url {shown!r} is no address such as {OPENAI_URL}")
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
        parts.port  # noqa: B018 - raises where it is no number
    except ValueError:
        return None
    return parts


def _api_key(config: TeacherConfig, host: str) -> str:
    """Return the key, '' where there is none: servers at home ask for none, but the SDK insists on one."""
    key = os.environ.get(config.api_key_env, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise TeacherError(f"teacher {config.name!r}: {config.api_key_env} holds characters that no key has")
    if not key and host.endswith("openai.com"):
        raise TeacherError(f"teacher {config.name!r} needs a key: set {config.api_key_env} in the environment")
    return key


def pointed_to(where: str, location: str) -> str:
    """Return the address that a redirect names, without credentials, query and the endpoint's own path."""
    parts = _parts(urljoin(f"{where}/chat/completions", location))
    if parts is None:
        return "nowhere"
    plain = urlunsplit(parts._replace(query="", fragment=""))
    return without_password(plain)[:200].removesuffix("/chat/completions")


def parsed(body: bytes) -> Any:
    """Return the JSON of a body; ValueError where it is none.

    What no answer needs must not cost the answer beside it: bytes that are no UTF-8 become U+FFFD, whole numbers too long for Python
    to read become texts, and what is nested deeper than `DEPTH_MOST` is null.
    """
    try:
        return json.loads(body)
    except UnicodeDecodeError:
        body = body.decode("utf-8", "replace").encode()
    except RecursionError:
        body = _pruned(body)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python reads no number of more than 4,300 digits
        pass
    try:
        return json.loads(body, parse_int=_whole_number)
    except RecursionError:
        return json.loads(_pruned(body), parse_int=_whole_number)


def _pruned(body: bytes) -> bytes:
    """Return JSON with null in place of whatever is nested deeper than `DEPTH_MOST`, in one pass over it."""
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
    """A reply is larger than the bound; `headers` are its own."""

    def __init__(self, most: int, headers: httpx2.Headers) -> None:
        super().__init__(f"the reply is larger than {most // MEGABYTE:,} MB; max_reply_mb sets this bound")
        self.headers = headers


class Refused(openai.OpenAIError):
    """The server answered with a status other than success. Raised before the SDK reads the body as whatever it claims to be."""

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
        # A response of its own, as the other client makes it, would take a tenth of a millisecond.
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
    """Return the unpacked body of a response of the client that asks questions."""
    return bytes(response.extensions[_BODY])


def _of_async(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    return response.aiter_bytes()


def _of_sync(response: httpx2.Response) -> Generator[bytes, None, None]:
    return response.iter_bytes()  # type: ignore[return-value] # a generator, declared as an iterator


def _whole(response: httpx2.Response, content: bytes) -> httpx2.Response:
    """Return a response whose body has been unpacked."""
    headers = response.headers
    headers.pop("content-encoding", None)
    whole = httpx2.Response(
        response.status_code,
        headers=headers,
        content=content,
        request=response.request,
        extensions=response.extensions,
    )
    whole.encoding = "utf-8"  # whatever the server says: the SDK would look up any codec that Python has
    return whole


def async_client(concurrency: int, most_mb: int) -> httpx2.AsyncClient:
    """Return the client that asks questions, `concurrency` at a time."""
    # With 256 under way, httpx's own pool took twice the processor time of aiohttp's for each request. Idle connections
    # are given up before a server's usual five seconds, lest a question be sent into a closing one.
    limits = httpx2.Limits(
        max_connections=concurrency + 8, max_keepalive_connections=concurrency + 8, keepalive_expiry=4.0
    )
    kind = _OverHttpx if find_spec("aiohttp") is None else _OverAiohttp
    client = kind(limits=limits, follow_redirects=False)
    client.most_bytes = most_mb * MEGABYTE
    return client


def sync_client(most_mb: int) -> httpx2.Client:
    """Return the client for files and batches; what it streams is for the caller to bound."""
    client = _Bounded(follow_redirects=False)
    client.most_bytes = most_mb * MEGABYTE
    return client
