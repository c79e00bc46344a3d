"""Marks that the pages' buttons and keys write: POST /marks, as a form or as JSON."""

from typing import Any
from urllib.parse import parse_qsl

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from recycledb.errors import StoreError
from recycledb.store.marks import Given, Target, add_marks
from recycledb.view.shared import shared_by

PAGES = ("sample", "review", "list")
FIELDS = ("sample_id", "variant_id", "mark", "note", "page", "variants", "back")


async def write(request: Request) -> Response:
    """Write a mark: `sample_id`, `variant_id` ('' for the sample), `mark`, `note`, and what was seen: `page`, `variants` (ids, by spaces).

    A form is answered by its page (`back`), JSON by the row.
    """
    body = await request.body()
    is_json = request.headers.get("content-type", "").startswith("application/json")
    given = _fields(body, is_json)
    row = await run_in_threadpool(_write, request, given)
    if is_json:
        return JSONResponse(row)
    return RedirectResponse(own_address(given["back"]), status_code=303)


def _fields(body: bytes, is_json: bool) -> dict[str, str]:
    try:
        found: Any = orjson.loads(body) if is_json else dict(parse_qsl(body.decode(), keep_blank_values=True))
    except ValueError as error:
        raise StoreError(f"the mark cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise StoreError("a mark is sent as fields that are texts")
    if unknown := sorted(set(found) - set(FIELDS)):
        raise StoreError(f"a mark has no field {unknown[0]!r}; it has {', '.join(FIELDS)}")
    return {name: found.get(name, "") for name in FIELDS}


def _write(request: Request, given: dict[str, str]) -> dict[str, Any]:
    if given["page"] not in PAGES:
        raise StoreError(f"page is {given['page']!r}; it must be one of {', '.join(PAGES)}")
    shared = shared_by(request)
    seen = {"page": given["page"], "variants": given["variants"].split()}
    target = Target(given["sample_id"], given["variant_id"] or None)
    [row] = add_marks(
        shared.workspace.store, [Given(target, given["mark"], given["note"].strip(), shared.person, seen)]
    )
    return row._asdict()


def own_address(address: str) -> str:
    """Return an address of this server as it is, and the first page for any other: `//x` and `/\\x` begin the name of another host."""
    is_own = address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
    return address if is_own else "/"


routes = [Route("/marks", write, methods=["POST"])]
