"""The application: its routes, and its answers to what goes wrong."""

from collections.abc import Callable, Collection
from importlib.resources import files
from pathlib import PurePath

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from recycledb.errors import RecycledbError
from recycledb.store import Store
from recycledb.view import compare, live, marks, overview, review, sample, samples, sql
from recycledb.view.guard import Guard
from recycledb.view.newest import Columns
from recycledb.view.shared import Shared, render
from recycledb.view.texts import SearchIndex
from recycledb.workspace import Workspace

PAGES = (overview, live, samples, sample, compare, sql, marks, review)
MEDIA = {".css": "text/css", ".js": "text/javascript"}


def make(
    workspace: Workspace, token: str, hosts: Collection[str], cookie: str = "recycledb", person: str = "nobody"
) -> tuple[ASGIApp, Callable[[], None]]:
    """Return the application for an open store, and a function that ends its streams; `person` is who marks; see `Guard` for the others."""
    routes = [route for each in PAGES for route in each.routes]
    routes.append(Route("/static/{name}", asset))
    app = Starlette(
        routes=routes, exception_handlers={RecycledbError: refused, HTTPException: missing, Exception: missing}
    )
    columns = Columns(workspace.store)
    stream = live.Live(workspace) if is_shared(workspace.store) else None
    shared = Shared(
        workspace, columns, SearchIndex(workspace.store), overview.Overview(workspace.store, columns), stream, person
    )
    app.state.shared = shared
    shared.columns.get()  # begins to read
    shared.overview.get()
    return Guard(app, token, hosts, cookie), stream.close if stream else lambda: None


def is_shared(store: Store) -> bool:
    """Return whether other processes can write to a store while this one has it open."""
    with store.read() as conn:
        return store.backend.commits(conn) is not None


def asset(request: Request) -> Response:
    """Return a stylesheet or script of the package."""
    name = request.path_params["name"]
    found = files("recycledb.reporting") / name if name == "page.css" else files("recycledb.view") / "static" / name
    media = MEDIA.get(PurePath(name).suffix)
    if media is None or PurePath(name).name != name or not found.is_file():
        raise HTTPException(404)
    text = found.read_text(encoding="utf-8")
    return Response(text, media_type=media, headers={"cache-control": "no-cache"})


def refused(request: Request, error: Exception) -> Response:
    """Answer an error of ours: one line, as JSON to scripts."""
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"error": str(error)}, status_code=400)
    return render(request, "message.html", heading="This cannot be shown", text=str(error), status=400)


def missing(request: Request, error: Exception) -> Response:
    """Answer a wrong address, or a defect of ours; uvicorn prints the traceback of one."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = (
        error.detail if isinstance(error, HTTPException) else f"A defect of recycledb: {type(error).__name__}: {error}"
    )
    heading = "Not found" if status == 404 else "This does not work"
    return render(request, "message.html", heading=heading, text=detail, status=status)
