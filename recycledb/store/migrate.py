"""Schema revisions: which one a store has, and how it gets the newest.

Invariant: only Alembic's revisions in `recycledb.migrations` create or change tables and views, each in one transaction,
and an existing file is copied before it is changed. A database that is not a store of ours is only looked at: not a byte of it changes.
"""

from importlib.resources import files
from pathlib import Path

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from recycledb.errors import SchemaError
from recycledb.store.backend import Backend
from recycledb.store.backup import copy_beside

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")  # tests hold them against the files
HEAD = REVISIONS[-1]
# What a store of any revision has: many projects number their revisions as we do, and have a table `alembic_version`.
FIRST_TABLES = {
    "dataset", "dataset_import", "sample", "place", "closing", "prompt", "teacher", "student", "worker", "attempt", "reply",
    "variant", "extraction", "loss", "selection", "selection_item", "name",
}  # fmt: skip


def current(backend: Backend, conn: Connection) -> str | None:
    """Return the store's revision, which may be newer than this code's; None where the file is blank.

    SchemaError where the file is a database of something else, or has lost what says which revision it is.
    """
    tables, is_blank = backend.contents(conn)
    if is_blank:
        return None
    if "alembic_version" not in tables:
        raise SchemaError(f"{backend.path} is a database of something else; name another file for the store")
    found = _versions(conn)
    missing = sorted(FIRST_TABLES - tables)
    if len(found) == 1 and _is_revision(found[0]) and not missing:
        return str(found[0])
    why = (
        f"has no table {missing[0]}"
        if missing
        else f"says {_shown(found)} in alembic_version, which is no revision of recycledb"
    )
    raise SchemaError(
        f"{backend.path} {why}: it is a database of something else, or damaged; name another file, or restore a copy"
    )


def _versions(conn: Connection) -> list[object]:
    try:
        return [row[0] for row in conn.exec_driver_sql("SELECT version_num FROM alembic_version LIMIT 3")]
    except DBAPIError:  # a table of that name with other columns; or damage, and then the next statement says so
        return []


def _is_revision(version: object) -> bool:
    if not isinstance(version, str):
        return False
    return version in REVISIONS or (len(version) == 4 and version.isascii() and version.isdecimal() and version > HEAD)


def _shown(found: list[object]) -> str:
    return " and ".join(repr(version)[:40] for version in found) or "nothing"


def require_newest(backend: Backend, conn: Connection) -> None:
    """Raise SchemaError, with the command that mends it, unless the store has this code's revision."""
    found, path = current(backend, conn), backend.path
    if found == HEAD:
        return
    if found is None:
        raise SchemaError(f"{path} holds no recycledb store; `recycledb init` or `recycledb add FILE` makes one")
    if found > HEAD:
        raise SchemaError(
            f"{path} has schema {found}, newer than this recycledb ({HEAD}); `pip install --upgrade recycledb` first"
        )
    raise SchemaError(f"{path} has schema {found}, older than this recycledb ({HEAD}); run `recycledb db upgrade`")


def upgrade(backend: Backend) -> Path | None:
    """Bring the store to the newest revision; return where its copy from before lies, if one was needed."""
    with backend.look() as conn:
        found = current(backend, conn)
        if found == HEAD:
            return None
        if found is not None and found > HEAD:
            require_newest(backend, conn)
    copy = None if found is None else copy_beside(backend, found)
    migrate(backend.writer)
    return copy


def migrate(writer: Engine) -> None:
    """Run the revisions that a database lacks, all in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("recycledb.migrations")).replace("%", "%%"))
    with writer.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "head")
