"""The URLs of stores: which backend a URL names, and where.

Invariant: no message shows a password.
"""

from pathlib import Path

from recycledb.errors import StoreError, without_password
from recycledb.store.backend import Backend

POSTGRESQL = ("postgresql+psycopg", "postgresql", "postgres")
EXAMPLES = "sqlite:///PATH, duckdb:///PATH or postgresql://HOST/DATABASE"


def is_server(url: str) -> bool:
    """Return whether a URL is of a database of a server."""
    return url.partition("://")[0] in POSTGRESQL


def shown(url: str) -> str:
    """Return a URL as messages show it."""
    return open_backend(url).label if is_server(url) else url


def parse_url(url: str) -> tuple[str, Path]:
    """Return the backend's name and the path of the URL of a store in a file, or raise StoreError."""
    scheme, separator, rest = url.partition(":///")
    shown = without_password(url)
    if not separator or scheme not in ("sqlite", "duckdb"):
        raise StoreError(f"{shown!r} is not a store's URL; use {EXAMPLES}")
    if not rest or rest == ":memory:":
        raise StoreError(f"{shown!r} has no path; a store is a file, for example {scheme}:///recycle.db")
    if "\0" in rest:
        raise StoreError(f"{shown!r} is not a store's URL: a path cannot contain a NUL character")
    try:
        return scheme, Path(rest).expanduser()
    except RuntimeError as error:
        raise StoreError(f"{shown!r}: no home folder of {rest.split('/')[0]} was found; give the full path") from error


def open_backend(url: str) -> Backend:
    """Return the backend of a URL, without opening its file or connecting to its server."""
    if is_server(url):
        return _postgresql(url)
    scheme, path = parse_url(url)
    try:
        path.exists()
    except OSError as error:  # no permission for a folder, a name that is too long
        raise StoreError(f"{path} cannot be opened: {error.strerror or error}") from error
    if scheme == "duckdb":
        from recycledb.store.duckdb import DuckDB

        return DuckDB(path)
    from recycledb.store.sqlite import SQLite

    return SQLite(path)


def _postgresql(url: str) -> Backend:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        from recycledb.store.postgresql import PostgreSQL
    except ImportError as error:
        raise StoreError(
            f"PostgreSQL stores need psycopg 3 ({error}); `pip install 'recycledb[postgresql]'`"
        ) from error
    try:
        parsed = make_url(f"postgresql+psycopg{url[url.index('://') :]}")
    except (ArgumentError, ValueError) as error:
        raise StoreError(f"{without_password(url)!r} is not a store's URL; use {EXAMPLES}") from error
    return PostgreSQL(parsed)
