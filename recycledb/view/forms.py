"""The fields of a form that was sent by POST."""

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from recycledb.errors import RecycledbError

Form = dict[str, str]
MOST_FIELDS = 1_000


class FormError(RecycledbError):
    """A form that cannot be read."""


def taking_form(handler: Callable[[Request, Form], Response]) -> Callable[[Request], Awaitable[Response]]:
    """Return a route's handler: it reads the form and calls `handler` in a thread, as Starlette does with plain functions."""

    async def answer(request: Request) -> Response:
        form = read_form(await request.body())
        return await run_in_threadpool(handler, request, form)

    return answer


def read_form(body: bytes) -> Form:
    """Return the fields; of several with one name the last. Line ends are those of the text as it was typed."""
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=MOST_FIELDS
        )
    except ValueError as error:  # not UTF-8, or too many fields
        raise FormError(f"the form cannot be read: {error}") from error
    return {name: value.replace("\r\n", "\n") for name, value in pairs}
