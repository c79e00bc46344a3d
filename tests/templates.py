"""Stores that are made once in a process and copied for each test: a copy takes a hundredth of what migrating and filling takes."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from recycledb.store import Store, parse_url


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


def new(url: str, fill: Callable[[str], object] | None = None) -> str:
    """Make a new store at `url`, a copy of what `fill` makes of an empty one; return the URL."""
    backend, path = parse_url(url)[:2]
    shutil.copyfile(made(backend, fill), path)
    return url
