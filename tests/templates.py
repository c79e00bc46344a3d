"""Stores that are made once in a process and copied for each test: a copy takes a hundredth of what migrating and filling takes."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import postgres_server

from recycledb.store import Store, parse_url
from recycledb.store.address import is_server


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="recycledb-templates-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def made(backend: str, fill: Callable[[str], object] | None = None) -> Path:
    """Return the file of a store on `backend` that `fill` has filled, given its URL; an empty one without."""
    name = f"{fill.__module__}.{fill.__qualname__}" if fill else "empty"
    path = _folder() / f"{name}.{backend}"
    url = f"{backend}:///{path}"
    if fill is None:
        Store.open(url, create=True).close()
    else:
        new(url)
        fill(url)
    return path


@cache
def _made_in_server(fill: Callable[[str], object] | None) -> str:
    """Return the name of a database with a store that `fill` has filled."""
    server = postgres_server.server()
    name = server.create(_made_in_server(None) if fill else None)
    url = server.url(name)
    if fill is None:
        Store.open(url, create=True).close()
    else:
        fill(url)
    return name


def new_url(backend: str, path: Path, fill: Callable[[str], object] | None = None) -> str:
    """Make a new store on `backend`, in a file at `path` or in a database of the test server; return its URL."""
    if backend == "postgresql":
        server = postgres_server.server()
        return server.url(server.create(_made_in_server(fill)))
    return new(f"{backend}:///{path}", fill)


def drop(url: str) -> None:
    """Drop the database of a store that `new_url` made; a file is removed with its folder."""
    if is_server(url):
        postgres_server.server().drop(url)


def new(url: str, fill: Callable[[str], object] | None = None) -> str:
    """Make a new store at `url`, a copy of what `fill` makes of an empty one; return the URL."""
    backend, path = parse_url(url)[:2]
    shutil.copyfile(made(backend, fill), path)
    return url
