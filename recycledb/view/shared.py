"""What handlers share: the open store, the columns, the templates, and how they answer.

A page is a module with `routes`; a handler takes a `Request` and returns what `render` or Starlette's responses make. Handlers are plain
functions, which Starlette runs in threads.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from recycledb.reporting import page as parts
from recycledb.view.columns import Snapshot
from recycledb.view.newest import Columns
from recycledb.view.texts import SearchIndex
from recycledb.workspace import Workspace

if TYPE_CHECKING:
    from recycledb.view.live import Live
    from recycledb.view.overview import Overview

FIRST_READ_S = 3.0  # how long a request waits for the first snapshot before it says what is being read


def environment() -> Environment:
    """Return the templates: every value is escaped, and a name that does not exist is an error."""
    found = Environment(
        loader=PackageLoader("recycledb.view"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": parts.number, "brief": brief, "pairs": parse_qsl}
    return found


def brief(value: float | None) -> str:
    """Return a number with three digits after the point, large ones and whole ones from 2 on (lengths, ratings) without, or a dash."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or (abs(value) >= 2 and value == int(value)) else f"{value:,.3f}"


@dataclass(frozen=True)
class Shared:
    """What handlers share: `shared_by(request)`."""

    workspace: Workspace
    columns: Columns
    index: SearchIndex
    overview: "Overview"
    live: "Live | None"  # None where no other process can write to the store
    person: str = "nobody"  # whose marks the buttons write
    kept: dict[str, Any] = field(default_factory=dict)  # what a page keeps between requests, by its own keys
    templates: Environment = field(default_factory=environment)

    @property
    def title(self) -> str:
        """The store's file name, without its folder."""
        return self.workspace.store.backend.title


def shared_by(request: Request) -> Shared:
    """Return what handlers share."""
    found: Shared = request.app.state.shared
    return found


def render(request: Request, template: str, *, here: str = "", status: int = 200, **values: Any) -> Response:
    """Return a page from a template; `here` is the page's address in the navigation."""
    shared = shared_by(request)
    return HTMLResponse(shared.templates.get_template(template).render(title=shared.title, here=here, **values), status)


def snapshot_for(request: Request, here: str) -> Snapshot | Response:
    """Return the newest snapshot; while the first is being read a page that says so and loads itself again."""
    columns = shared_by(request).columns
    found = columns.get(FIRST_READ_S)
    if found is not None:
        return found
    if columns.error is not None:
        return render(
            request, "message.html", here=here, heading="The store cannot be read", text=columns.error, status=500
        )
    return render(request, "waiting.html", here=here, reading=columns.progress)
