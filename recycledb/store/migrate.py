"""Schema revisions: find a store's revision, and upgrade it to the newest.

Invariant: only the Alembic revisions in `recycledb.migrations` create or change tables and views, each in one transaction, and an
existing file is backed up before it is changed. A database that is not a recycledb store is only read: it stays byte for byte the same.
"""

from datetime import datetime
from importlib.resources import files
from pathlib import Path

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from recycledb.errors import SchemaError
from recycledb.store.backend import Backend
from recycledb.store.liveness import HEARTBEAT_TIMEOUT_S, Watch
from recycledb.store.living import counted, living, who

REVISIONS = (
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
    "0006",
    "0007",
    "0008",
    "0009",
)  # a test compares them with the files
HEAD = REVISIONS[-1]
# Tables of a store of any revision: many projects number their revisions like this one and have a table `alembic_version`.
FIRST_TABLES = {
    "dataset", "dataset_import", "sample", "place", "closing", "prompt", "teacher", "student", "worker", "attempt", "reply",
    "variant", "extraction", "loss", "selection", "selection_item", "name",
}  # fmt: skip


def current(backend: Backend, conn: Connection) -> str | None:
    """Return the store's revision, which may be newer than this code's; None if the file is blank.

    Raises SchemaError if the file is another program's database, or if its revision is missing or unknown.
    """
    tables, is_blank = backend.contents(conn)
    if is_blank:
        return None
    if "alembic_version" not in tables:
        raise SchemaError(f"{backend.label} is another program's database; use another file for the store")
    found = _versions(conn)
    missing = sorted(FIRST_TABLES - tables)
    if len(found) == 1 and _is_revision(found[0]) and not missing:
        return str(found[0])
    why = (
        f"has no table {missing[0]}"
        if missing
        else f"has {_shown(found)} in alembic_version, which is not a revision of recycledb"
    )
    raise SchemaError(
        f"{backend.label} {why}: it is another program's database, or damaged; use another file, or restore a backup"
    )


def _versions(conn: Connection) -> list[object]:
    try:
        return [row[0] for row in conn.exec_driver_sql("SELECT version_num FROM alembic_version LIMIT 3")]
    except DBAPIError:  # a table of that name with other columns; if the file is damaged, the next statement fails too
        return []


def _is_revision(version: object) -> bool:
    if not isinstance(version, str):
        return False
    return version in REVISIONS or (len(version) == 4 and version.isascii() and version.isdecimal() and version > HEAD)


def _shown(found: list[object]) -> str:
    return " and ".join(repr(version)[:40] for version in found) or "nothing"


def require_newest(backend: Backend, conn: Connection) -> None:
    """Raise SchemaError, with the command to run, unless the store has this code's revision."""
    found, path = current(backend, conn), backend.label
    if found == HEAD:
        return
    if found is None:
        raise SchemaError(f"{path} holds no recycledb store; `recycledb init` or `recycledb add FILE` creates one")
    if found > HEAD:
        raise SchemaError(
            f"{path} has schema {found}, newer than this recycledb ({HEAD}); `pip install --upgrade recycledb` first"
        )
    raise SchemaError(f"{path} has schema {found}, older than this recycledb ({HEAD}); run `recycledb db upgrade`")


def upgrade(backend: Backend, *, force: bool = False) -> Path | None:
    """Upgrade the store to the newest revision; return where the copy of it is, if one was made.

    SchemaError while processes are at work on it; `force` takes those for dead that have not sent a heartbeat for two minutes.
    """
    watch = Watch()
    with backend.look() as conn:
        found = current(backend, conn)
        if found == HEAD:
            return None
        if found is not None and found > HEAD:
            require_newest(backend, conn)
        if found is not None:  # before the copy, which takes long
            _require_unused(backend, watch, conn, force)
    copy = None if found is None else backend.copy_before_upgrade(found)
    with backend.begin(locked=True) as conn:
        if found is not None:
            _require_unused(backend, watch, conn, force)
        if current(backend, conn) != HEAD:  # another process may have upgraded it in the meantime
            migrate(conn)
    return copy


def _require_unused(backend: Backend, watch: Watch, conn: Connection, force: bool) -> None:
    """Raise SchemaError while processes are at work on the store: their rows would no longer fit it."""
    workers = living(backend, watch, conn)
    if force:
        now = backend.now(conn)
        workers = [each for each in workers if _age_s(each.heartbeat_at, now) < HEARTBEAT_TIMEOUT_S]
    if not workers:
        return
    silent = (
        f"each of them has sent a heartbeat within {HEARTBEAT_TIMEOUT_S:.0f} seconds, so --force does not help yet"
        if force
        else "if they were killed on another host, use --force two minutes later"
    )
    raise SchemaError(
        f"{counted(workers)} at work on {backend.label}: {who(workers)}; stop them or wait until they have ended, "
        f"then run `recycledb db upgrade` again ({silent})"
    )


def _age_s(heartbeat_at: str, now: str) -> float:
    try:
        return (datetime.fromisoformat(now) - datetime.fromisoformat(heartbeat_at)).total_seconds()
    except ValueError:  # a damaged row
        return 0.0


def migrate(conn: Connection) -> None:
    """Run the missing revisions in the transaction of `conn`."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("recycledb.migrations")).replace("%", "%%"))
    config.attributes["connection"] = conn
    command.upgrade(config, "head")
