"""The application: its routes, and its answers to what goes wrong."""

from collections.abc import Collection
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from recycledb.errors import RecycledbError
from recycledb.view import marks, review, sample, samples
from recycledb.view.columns import Columns
from recycledb.view.guard import Guard
from recycledb.view.shared import Shared, render
from recycledb.workspace import Workspace

PAGES = (samples, sample, marks, review)
ASSETS = {
    "page.css": ("recycledb.reporting", "text/css"),
    "view.css": ("recycledb.view", "text/css"),
    "view.js": ("recycledb.view", "text/javascript"),
    "sample.css": ("recycledb.view", "text/css"),
    "sample.js": ("recycledb.view", "text/javascript"),
    "review.js": ("recycledb.view", "text/javascript"),
}


def make(
    workspace: Workspace, token: str, hosts: Collection[str], cookie: str = "recycledb", person: str = "nobody"
) -> ASGIApp:
    """Return the application for an open store; `person` is who marks; see `Guard` for the other parameters."""
    routes = [route for each in PAGES for route in each.routes]
    routes.append(Route("/static/{name}", asset))
    app = Starlette(routes=routes, exception_handlers={RecycledbError: refused, HTTPException: missing})
    app.state.shared = Shared(workspace, Columns(workspace.store), person)
    app.state.shared.columns.get()  # begins to read
    return Guard(app, token, hosts, cookie)


def asset(request: Request) -> Response:
    """Return a stylesheet or script of the package."""
    name = request.path_params["name"]
    if name not in ASSETS:
        raise HTTPException(404)
    package, media = ASSETS[name]
    folder = files(package)
    text = (folder / "static" / name if package == "recycledb.view" else folder / name).read_text(encoding="utf-8")
    return Response(text, media_type=media, headers={"cache-control": "no-cache"})


def refused(request: Request, error: Exception) -> Response:
    """Answer an error of ours: one line, as JSON to scripts."""
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"error": str(error)}, status_code=400)
    return render(request, "message.html", heading="This cannot be shown", text=str(error), status=400)


def missing(request: Request, error: Exception) -> Response:
    """Answer a wrong address."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else str(error)
    heading = "Not found" if status == 404 else "This does not work"
    return render(request, "message.html", heading=heading, text=detail, status=status)
