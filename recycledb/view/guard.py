"""What every request must pass and every answer has: token, host, origin; content policy.

Invariant: without the token no route is reached. The token comes once in the address and is kept in a cookie then, so that it is not in
the history of pages, in copied links or in what other sites are told (`Referer`).
"""

import hmac
from collections.abc import Collection
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none, browsers send `Origin: null` with forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
READING = ("GET", "HEAD")
MAX_BODY = 4 << 20  # bytes of a request: a long query, a thousand marks


class Guard:
    """Wraps an application. `hosts` are the values of `Host` that are the server's own; `cookie` is the name of its cookie."""

    def __init__(self, app: ASGIApp, token: str, hosts: Collection[str], cookie: str) -> None:
        self.app, self.token, self.hosts, self.cookie = app, token, frozenset(hosts), cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self.app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        if request.headers.get("host", "").lower() not in self.hosts:
            return _page("This address is not the server's", "Open the address that recycledb view printed.", 400)
        given = request.query_params.get("token")
        if given is not None and request.method in READING and self._is_token(given):
            return self._enter(request)
        if not self._is_token(request.cookies.get(self.cookie, "")):
            text = "Open the address that recycledb view printed: it contains the token that is missing here."
            return _page("No access", text, 403)
        if request.method not in READING:
            return self._foreign(request)
        return None

    def _enter(self, request: Request) -> Response:
        """Keep the token in a cookie and go on to the address without it."""
        rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
        to = request.url.path + (f"?{urlencode(rest)}" if rest else "")
        answer = RedirectResponse("/" + to.lstrip("/"), status_code=303)  # // would begin the name of another host
        answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
        return answer

    def _foreign(self, request: Request) -> Response | None:
        """Refuse a request that changes something unless a page of this server sent it."""
        origin = urlsplit(request.headers.get("origin", ""))
        if origin.netloc.lower() != request.headers.get("host", "").lower():
            return _page("Refused", "Only the pages of this server may change something.", 403)
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            return _page("Refused", f"A request must say its length, at most {MAX_BODY >> 20} MB.", 413)
        return None

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "surrogateescape"), self.token.encode())


def _page(title: str, text: str, status: int) -> Response:
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1><p>{text}</p></html>',
        status,
    )
