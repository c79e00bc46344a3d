"""Schema revisions: which one a store has, and how it gets the newest.

Invariant: only Alembic's revisions in `recycledb.migrations` create or change tables and views, each in one transaction,
and an existing file is copied before it is changed.
"""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from recycledb.errors import SchemaError
from recycledb.store.backend import Backend

HEAD = "0005"  # the newest revision; tests hold it against the files


def current(conn: Connection) -> str | None:
    """Return the store's revision; None when it has none yet."""
    if not has_table(conn, "alembic_version"):
        return None
    row = conn.execute(text("SELECT version_num FROM alembic_version")).first()
    return str(row[0]) if row else None


def has_table(conn: Connection, name: str) -> bool:
    """Say whether a table is there."""
    return bool(inspect(conn).has_table(name))


def is_empty(conn: Connection) -> bool:
    """Say whether nothing at all is in the file, so that a store may be made there."""
    return not inspect(conn).get_table_names()


def require_newest(conn: Connection, path: Path) -> None:
    """Raise SchemaError, with the command that mends it, unless the store has this code's revision."""
    found = current(conn)
    if found == HEAD:
        return
    if found is None and is_empty(conn):
        raise SchemaError(f"{path} holds no recycledb store; `recycledb init` or `recycledb add FILE` makes one")
    if found is None:
        raise SchemaError(f"{path} is a database of something else; name another file for the store")
    if found > HEAD:
        raise SchemaError(
            f"{path} has schema {found}, newer than this recycledb ({HEAD}); `pip install --upgrade recycledb` first"
        )
    raise SchemaError(f"{path} has schema {found}, older than this recycledb ({HEAD}); run `recycledb db upgrade`")


def upgrade(backend: Backend) -> Path | None:
    """Bring the store to the newest revision; return where its copy from before lies, if one was needed."""
    with backend.reader.connect() as conn:
        found = current(conn)
    if found == HEAD:
        return None
    if found is not None and found > HEAD:
        with backend.reader.connect() as conn:
            require_newest(conn, backend.path)
    copy = None
    if found is not None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        copy = backend.path.with_name(f"{backend.path.name}.{found}-{stamp}.bak")
        backend.backup(copy)
    _run(backend)
    return copy


def _run(backend: Backend) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("recycledb.migrations")))
    with backend.writer.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "head")
